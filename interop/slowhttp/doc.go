// Package slowhttp lets slowhttptest, the tool of that name, attack a whole
// gate, its program with a book: slow headers, slow bodies and slow reading. It
// needs the Debian package slowhttptest.
package slowhttp
