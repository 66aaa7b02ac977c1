package canon

// data accepts body bytes.
func (h *H1) data(b []byte) int {
	n := int(min(int64(len(b)), h.left))
	if h.left -= int64(n); h.left == 0 {
		if h.state == h1Chunk {
			h.state = h1ChunkEnd
		} else {
			h.state = h1Done
		}
	}
	return n
}

// maxSizeDigits keeps a chunk size, leading zeros included, far from any
// overflow; net/http reads 16.
const maxSizeDigits = 15

// chunkSize reads "size CRLF" (RFC 9112 section 7.1): no extension, no white
// space. Of the last chunk nothing is accepted before its trailers are good
// too, so that whoever reads behind us meets the verdict and not half an end.
func (h *H1) chunkSize(b []byte) (H1Part, int, error) {
	size, i := int64(0), 0
	for ; i < len(b); i++ {
		d := unhex(b[i])
		if d < 0 {
			break
		}
		if i == maxSizeDigits {
			return H1More, 0, refuse(AmbiguousFraming, "chunk size of more than 15 digits")
		}
		size = size<<4 | int64(d)
	}
	switch {
	case i == len(b):
		return H1More, 0, nil
	case i == 0 || b[i] != '\r':
		return H1More, 0, refuse(AmbiguousFraming, "chunk size that is not a number alone on its line")
	case i+1 == len(b):
		return H1More, 0, nil
	case b[i+1] != '\n':
		return H1More, 0, refuse(AmbiguousFraming, "bare CR after a chunk size")
	}
	if size == 0 {
		h.state = h1Trailer
		h.at, h.line, h.lines = i+2, i+2, 0
		return h.trailers(b)
	}
	h.left, h.state = size, h1Chunk
	return H1Frame, i + 2, nil
}

// chunkEnd reads the line end after the data of a chunk.
func (h *H1) chunkEnd(b []byte) (H1Part, int, error) {
	if b[0] != '\r' || len(b) > 1 && b[1] != '\n' {
		return H1More, 0, refuse(AmbiguousFraming, "chunk that does not end where its size says")
	}
	if len(b) == 1 {
		return H1More, 0, nil
	}
	h.state = h1Size
	return H1Frame, 2, nil
}

// trailers reads the trailer section and the empty line that ends the body.
func (h *H1) trailers(b []byte) (H1Part, int, error) {
	for {
		line, found, err := h.nextLine(b, MaxTrailerBytes, AmbiguousFraming)
		if err != nil || !found {
			return H1More, 0, err
		}
		if len(line) == 0 {
			h.state = h1Done
			return H1Frame, h.at, nil
		}
		name, _, ok := splitField(line)
		if !ok || trailerForbidden(string(name)) {
			return H1More, 0, refuse(AmbiguousFraming, "trailer that is no field or must not be one")
		}
	}
}
