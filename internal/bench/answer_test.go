package bench

import (
	"errors"
	"strings"
	"testing"
)

func TestParseAnswer(t *testing.T) {
	const empty = "HTTP/1.1 200 OK\r\nDate: Mon, 02 Feb 2026 02:40:01 GMT\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name, in     string
		status, size int
		err          error
	}{
		{"empty body", empty, 200, len(empty), nil},
		{"body", "HTTP/1.1 503 Service Unavailable\r\ncontent-length:  7\r\n\r\nsuccess", 503, -1, nil},
		{"keep-alive said", "HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", 200, -1, nil},
		{"no reason", "HTTP/1.1 403\r\nContent-Length: 0\r\n\r\n", 403, -1, nil},
		{"second answer", empty + empty, 200, len(empty), nil},
		{"not HTTP", "SSH-2.0-OpenSSH_9.9\r\n", 0, 0, errNotHTTP},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 0, 0, errNotHTTP},
		{"status is a word", "HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n", 0, 0, errNotHTTP},
		{"interim answer", "HTTP/1.1 100 Continue\r\n\r\n", 0, 0, errNotHTTP},
		{"bad length", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 0, 0, errNotHTTP},
		{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, 0, errNotHTTP},
		{"no length", "HTTP/1.1 200 OK\r\n\r\n", 0, 0, errNoLength},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 0, errNoLength},
		{"closing", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 0, 0, errClosing},
		{"huge body", "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", 0, 0, errHuge},
		{"endless header", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswer), 0, 0, errHuge},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.size < 0 {
				c.size = len(c.in)
			}
			status, size, err := parseAnswer([]byte(c.in))
			if !errors.Is(err, c.err) || err == nil && (status != c.status || size != c.size) {
				t.Errorf("got %d, %d, %v, want %d, %d, %v", status, size, err, c.status, c.size, c.err)
			}
			// In pieces it is not complete, and never something else, until the last byte.
			for n := range c.size {
				if _, size, err := parseAnswer([]byte(c.in[:n])); size != 0 || err != nil {
					t.Fatalf("of %d bytes, %d: got %d, %v, want 0, nil", len(c.in), n, size, err)
				}
			}
		})
	}
}
