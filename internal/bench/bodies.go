package bench

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// The app that the callbacks are for. It exists only in the benchmark.
const (
	appName = "bench"
	corpID  = "ww00aa11bb22cc33dd"
	agentID = "1000002"
	users   = 1000
)

var pair = wecom.Pair{Token: "benchToken", AESKey: "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"}

// requests are callbacks ready to be sent, each with a message id of its own. They lie in
// one block of memory without a pointer in it, so that the garbage collector of the
// generator has nothing to do.
type requests struct {
	data []byte
	size int // of one; all are equally long
	body int // of that, the body
}

// seal makes n callbacks as WeCom would send them: text messages of 1,000 users, signed
// and encrypted.
func seal(n, threads int) (*requests, error) {
	first, body, err := request(0)
	if err != nil {
		return nil, err
	}
	r := &requests{data: make([]byte, n*len(first)), size: len(first), body: body}
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for t := range threads {
		wg.Go(func() {
			for i := t; i < n && errs[t] == nil; i += threads {
				b, _, err := request(i)
				if err == nil && len(b) != r.size {
					err = fmt.Errorf("callback %d has another length", i)
				}
				errs[t] = err
				copy(r.data[i*r.size:], b)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("seal callbacks: %w", err)
	}
	return r, nil
}

func request(i int) (req []byte, bodySize int, err error) {
	timestamp, nonce := fmt.Sprint(1770000000+i/1000), fmt.Sprintf("%010d", i)
	plain := fmt.Appendf(nil, "<xml><ToUserName><![CDATA[%s]]></ToUserName><FromUserName><![CDATA[user%04d]]></FromUserName>"+
		"<CreateTime>%s</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[%s]]></Content>"+
		"<MsgId>%019d</MsgId><AgentID>%s</AgentID></xml>",
		corpID, i%users, timestamp, "你好，请问今天下午三点的会议室预订好了吗？谢谢！", 7100000000000000000+i, agentID)
	encrypt, signature, err := wecom.Seal(pair, corpID, timestamp, nonce, plain)
	if err != nil {
		return nil, 0, err
	}
	var body strings.Builder
	fmt.Fprintf(&body, "<xml><ToUserName><![CDATA[%s]]></ToUserName><Encrypt><![CDATA[%s]]></Encrypt><AgentID><![CDATA[%s]]></AgentID></xml>",
		corpID, encrypt, agentID)
	req = fmt.Appendf(nil, "POST /callback/%s?msg_signature=%s&timestamp=%s&nonce=%s HTTP/1.1\r\n"+
		"Host: bridge.example.com\r\nUser-Agent: Mozilla/4.0\r\nAccept: */*\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s",
		appName, signature, timestamp, nonce, body.Len(), body.String())
	return req, body.Len(), nil
}

// once returns a function that gives out each request one time, and then nil.
func (r *requests) once() func() []byte {
	var next atomic.Int64
	n := int64(len(r.data) / r.size)
	return func() []byte {
		i := next.Add(1) - 1
		if i >= n {
			return nil
		}
		return r.data[i*int64(r.size):][:r.size:r.size]
	}
}

// again returns a function that gives out the requests for ever, for servers that
// remember none of them.
func (r *requests) again() func() []byte {
	var next atomic.Int64
	n := int64(len(r.data) / r.size)
	return func() []byte {
		i := (next.Add(1) - 1) % n
		return r.data[i*int64(r.size):][:r.size:r.size]
	}
}
