package bench

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

func TestSeal(t *testing.T) {
	const n = 25
	r, err := seal(n, 3)
	if err != nil {
		t.Fatal(err)
	}
	callback, err := wecom.NewCallback([]wecom.Pair{pair}, []string{corpID})
	if err != nil {
		t.Fatal(err)
	}
	ids := make(map[string]bool)
	next := r.once()
	for b := next(); b != nil; b = next() {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) != r.body {
			t.Errorf("a body of %d bytes, want %d", len(body), r.body)
		}
		plain, _, err := callback.Open(req.URL.RawQuery, body)
		if err != nil {
			t.Fatal(err)
		}
		var p wecom.Payload
		data := wecom.Parse(nil, plain, &p)
		if p.Type() != "wecom.message.text" || !strings.HasPrefix(p.PartitionKey, "user") {
			t.Errorf("got type %s, key %s, data %s", p.Type(), p.PartitionKey, data)
		}
		ids[p.ID()] = true
	}
	if len(ids) != n {
		t.Errorf("%d different events, want %d", len(ids), n)
	}
	again := r.again()
	first := string(again())
	for range n - 1 {
		again()
	}
	if got := string(again()); got != first {
		t.Errorf("after the last request comes %q, want the first", got)
	}
}
