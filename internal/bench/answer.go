package bench

import (
	"bytes"
	"errors"
	"strconv"
)

// maxAnswer is the largest answer that is waited for. Ours have an empty body.
const maxAnswer = 16 << 10

var (
	errNotHTTP   = errors.New("not an HTTP/1.1 answer")
	errNoLength  = errors.New("answer without Content-Length")
	errHuge      = errors.New("answer over 16 KiB")
	errClosing   = errors.New("server closes the connection")
	errUnasked   = errors.New("more than one answer to one request")
	headerEnd    = []byte("\r\n\r\n")
	lineEnd      = []byte("\r\n")
	protocol     = []byte("HTTP/1.1 ")
	lengthName   = []byte("content-length")
	encodingName = []byte("transfer-encoding")
	connName     = []byte("connection")
)

// parseAnswer reads one HTTP/1.1 answer at the beginning of b: its status and how many
// bytes it takes. A size of 0 says that it is not complete yet. It understands what a
// server sends that keeps the connection and knows the length of its body; everything
// else is an error, so that nothing is counted that was not understood.
func parseAnswer(b []byte) (status, size int, err error) {
	end := bytes.Index(b, headerEnd)
	if end < 0 {
		if len(b) > maxAnswer {
			return 0, 0, errHuge
		}
		if n := min(len(b), len(protocol)); !bytes.Equal(b[:n], protocol[:n]) {
			return 0, 0, errNotHTTP
		}
		return 0, 0, nil
	}
	line, rest, _ := bytes.Cut(b[:end], lineEnd)
	if len(line) < len(protocol)+3 || !bytes.HasPrefix(line, protocol) {
		return 0, 0, errNotHTTP
	}
	if status, err = strconv.Atoi(string(line[len(protocol):][:3])); err != nil || status < 200 {
		return 0, 0, errNotHTTP
	}
	length := -1
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, lineEnd)
		name, value, _ := bytes.Cut(line, []byte{':'})
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, lengthName):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return 0, 0, errNotHTTP
			}
		case bytes.EqualFold(name, encodingName):
			return 0, 0, errNoLength
		case bytes.EqualFold(name, connName) && !bytes.EqualFold(value, []byte("keep-alive")):
			return 0, 0, errClosing
		}
	}
	if length < 0 {
		return 0, 0, errNoLength
	}
	size = end + len(headerEnd) + length
	if size > maxAnswer {
		return 0, 0, errHuge
	}
	if size > len(b) {
		return status, 0, nil
	}
	return status, size, nil
}
