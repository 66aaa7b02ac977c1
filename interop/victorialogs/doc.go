// Package victorialogs delivers a real book to VictoriaLogs, which speaks the
// intake protocols of several products and can be asked what it holds. It takes
// everything and refuses nothing, so it says only whether what we send is
// understood by somebody who never read our code.
package victorialogs
