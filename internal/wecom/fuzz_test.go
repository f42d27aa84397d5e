package wecom

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzQuery(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.RawQuery)
	}
	f.Add("msg_signature=a+b&timestamp=%31&nonce&%6eonce=2&echostr=a+b%20c%2B&x=%zz;&&=")
	f.Fuzz(func(t *testing.T, raw string) {
		got, ok := parseQuery(raw)
		// net/url agrees where it has no complaints; it drops what it complains about.
		values, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		if want := values.Has("msg_signature") && values.Has("timestamp") && values.Has("nonce"); ok != want {
			t.Fatalf("parseQuery(%q) reports %v, want %v", raw, ok, want)
		}
		want := query{
			signature: values.Get("msg_signature"),
			timestamp: values.Get("timestamp"),
			nonce:     values.Get("nonce"),
			echo:      strings.ReplaceAll(values.Get("echostr"), " ", "+"),
		}
		if ok && got != want {
			t.Fatalf("parseQuery(%q) = %q, want %q", raw, got, want)
		}
	})
}

func FuzzEnvelope(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.body())
	}
	f.Add([]byte(`{"ToUserName":"a","encrypt":"a\/b=","agentid":1}`))
	f.Add([]byte("\ufeff\n<xml><Encrypt> <![CDATA[a]]>\n</Encrypt></xml> "))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		got, ok := findEncrypt(body)
		if !bytes.Equal(body, before) {
			t.Fatal("the body was modified")
		}
		if ok && len(got) == 0 {
			t.Fatal("found nothing")
		}
		// The slow way agrees, but for a text that is no base64 anyway, which the fast way
		// does not look at.
		if _, valid := decodeBase64(make([]byte, len(got)), got); ok && !valid {
			return
		}
		var want []byte
		var wantOK bool
		if s := trimStart(string(body)); strings.HasPrefix(s, "{") {
			want, wantOK = slowJSON([]byte(s))
		} else {
			want, wantOK = slowXML(string(body))
		}
		if ok != wantOK || !bytes.Equal(got, want) {
			t.Fatalf("findEncrypt(%q) = %q, %v, the slow way %q, %v", body, got, ok, want, wantOK)
		}
	})
}

// FuzzOpen feeds anything, and what a seal made of it.
func FuzzOpen(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.RawQuery, v.body(), v.ReceiveID)
	}
	p := Pair{callbackToken, callbackKey}
	f.Fuzz(func(t *testing.T, rawQuery string, body []byte, receiveID string) {
		c := newTestCallback(t, []Pair{p, {callbackToken, otherKey}}, receiveID)
		if _, _, err := c.Open(rawQuery, body); err != nil && !isCallbackError(err) {
			t.Fatalf("Open = %v", err)
		}
		if _, err := c.Verify(rawQuery); err != nil && !isCallbackError(err) {
			t.Fatalf("Verify = %v", err)
		}

		query, envelope := sealed(t, p, receiveID, string(body))
		if plain, _, err := c.Open(query, envelope); err != nil || plain != string(body) {
			t.Fatalf("Open = %q, %v, want %q", plain, err, body)
		}

		// A genuine signature over an encrypted text that nobody sealed.
		text := base64.StdEncoding.EncodeToString(body)
		for _, encrypt := range []string{text, string(body)} {
			sum, _ := sign(nil, p.Token, "1", "n", []byte(encrypt))
			raw := "msg_signature=" + string(sum[:]) + "&timestamp=1&nonce=n"
			data, _ := json.Marshal(map[string]string{"encrypt": encrypt})
			if _, _, err := c.Open(raw, data); err != nil && !isCallbackError(err) {
				t.Fatalf("Open = %v", err)
			}
			if _, err := c.Verify(raw + "&echostr=" + url.QueryEscape(encrypt)); err != nil && !isCallbackError(err) {
				t.Fatalf("Verify = %v", err)
			}
		}
	})
}

func isCallbackError(err error) bool {
	return errors.Is(err, ErrSignature) || errors.Is(err, ErrReceiver) || errors.Is(err, ErrMalformed)
}

// FuzzPlaintext decrypts random blocks under a genuine signature: whatever padding, length
// and receive id come out of them.
func FuzzPlaintext(f *testing.F) {
	f.Add([]byte("0123456789abcdef\x00\x00\x00\x05helloww"), byte(0))
	f.Add([]byte("0123456789abcdef\xff\xff\xff\xffhello"), byte(5))
	f.Fuzz(func(t *testing.T, plain []byte, pad byte) {
		n := blockSize - len(plain)%blockSize
		for range n {
			plain = append(plain, byte(n)+pad)
		}
		c := newTestCallback(t, []Pair{{callbackToken, callbackKey}}, "ww", "")
		key, _ := decodeAESKey(callbackKey)
		encrypt := encryptBlocks(&key, bytes.Clone(plain))
		s := c.scratch.Get().(*scratch)
		msg, err := c.decrypt(s, 0, encrypt)
		if err != nil {
			if !isCallbackError(err) {
				t.Fatalf("decrypt = %v", err)
			}
			return
		}
		if want := plain[headSize : headSize+len(msg)]; !bytes.Equal(msg, want) {
			t.Fatalf("decrypt = %q, want %q", msg, want)
		}
	})
}

// FuzzBase64 compares with the standard library, which skips line breaks.
func FuzzBase64(f *testing.F) {
	f.Add([]byte("Hhy9xMck/rLChgLxPcH7D5OQ+fk6"))
	f.Add([]byte("YQ=="))
	f.Add([]byte("YWJjZGVmZ2g="))
	f.Add([]byte("YWJjZGVmZ2hp\nYWI\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, text := range [][]byte{src, []byte(base64.StdEncoding.EncodeToString(src))} {
			dst := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
			n, ok := decodeBase64(dst, text)
			want, err := base64.StdEncoding.DecodeString(string(text))
			if wantOK := err == nil && !bytes.ContainsAny(text, "\r\n"); ok != wantOK || ok && !bytes.Equal(dst[:n], want) {
				t.Fatalf("decodeBase64(%q) = %q, %v, want %q, %v", text, dst[:n], ok, want, wantOK)
			}
		}
	})
}

var idPattern = regexp.MustCompile(`^(m-[!-~]{1,128}|h-[a-z2-7]{26})$`)

func FuzzParse(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Plaintext)
	}
	for _, s := range treeSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, plain string) {
		var p Payload
		all := Parse([]byte("before"), plain, &p)
		data, ok := bytes.CutPrefix(all, []byte("before"))
		if !ok || !json.Valid(data) || !utf8.Valid(data) {
			t.Fatalf("Parse(%q) = %q", plain, all)
		}
		if id := p.ID(); !idPattern.MatchString(id) {
			t.Errorf("id %q", id)
		}
		if p.Subject == "" || p.PartitionKey == "" || len(p.Tail()) == 0 {
			t.Errorf("%+v", p)
		}
		var text string
		switch p.Format {
		case JSON:
			if data[0] != '{' || p.Tail()[0] == "unknown" {
				t.Errorf("Parse(%q) = %s, type %s", plain, data, p.Type())
			}
		case Text:
			if err := json.Unmarshal(data, &text); err != nil || text != plain || p.Type() != "wecom.unknown" {
				t.Errorf("Parse(%q) = %s, type %s", plain, data, p.Type())
			}
		case Binary:
			if string(data) != `"`+base64.StdEncoding.EncodeToString([]byte(plain))+`"` || p.Type() != "wecom.unknown" {
				t.Errorf("Parse(%q) = %s, type %s", plain, data, p.Type())
			}
		}

		// What the fast way reads, the slow way reads to the same bytes and the same event.
		fast, slow := Payload{Subject: "-", PartitionKey: "-"}, Payload{Subject: "-", PartitionKey: "-"}
		if got, ok := parseFlat(nil, plain, &fast); ok {
			want, ok := parseSlow(nil, plain, &slow)
			if !ok || !bytes.Equal(got, want) || fast != slow {
				t.Errorf("of %q\nthe fast way makes %s, %+v,\nthe slow way %v, %s, %+v", plain, got, fast, ok, want, slow)
			}
		}
	})
}

// FuzzFlat compares flat and tree where nothing can be classified, which FuzzParse rarely
// reaches.
func FuzzFlat(f *testing.F) {
	f.Add("<A>x</A><B><![CDATA[y]]></B>")
	f.Add("<A> x\n</A>\n<B> <![CDATA[ ]]]> ]]></B>")
	f.Add("<A>\"\\\t\ufffd\uffff</A><Abcdefgh></Abcdefgh>")
	f.Fuzz(func(t *testing.T, inner string) {
		plain := textHead + inner + "</xml>"
		fast, slow := Payload{Subject: "-", PartitionKey: "-"}, Payload{Subject: "-", PartitionKey: "-"}
		got, ok := parseFlat(nil, plain, &fast)
		if !ok {
			return
		}
		want, ok := parseSlow(nil, plain, &slow)
		if !ok || !bytes.Equal(got, want) || fast != slow {
			t.Errorf("of %q\nthe fast way makes %s, %+v,\nthe slow way %v, %s, %+v", plain, got, fast, ok, want, slow)
		}
	})
}

var treeSeeds = []string{
	"<xml><A a='1' b=\"2\">x<B/>y<!-- c --> <C>1</C><C>2</C></A></xml>",
	"<xml><A> &lt;<![CDATA[ <b> ]]> ]]&gt; <![CDATA[]]>\r\n</A></xml>",
	"<?xml version=\"1.0\"?>\n<xml><w:A xmlns:w='u'>&#x4f60;</w:A></xml>\n<!-- -->",
	"\ufeff<xml><DocId>1</DocId><Event>doc_change</Event><MsgType>event</MsgType></xml>",
	"<!DOCTYPE xml [<!ENTITY e 'x'>]><xml>&e;</xml>",
	`{"aibotid":"b","msgtype":"event","event":{"eventtype":"a\u0062"},"x":[{"y":1.5e3},[],{}],"z":null}`,
	botText,
}

// FuzzTree compares the tree with another reading of the same document.
func FuzzTree(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Plaintext)
	}
	for _, s := range treeSeeds {
		f.Add(s)
	}
	for _, s := range []string{"&#xd800;", "&#57343;", "&#65536;", "]]>", "&amp;#xd800;", "<a/><b></b>"} {
		f.Add("<xml>" + s + "</xml>")
	}
	f.Fuzz(func(t *testing.T, s string) {
		root, err := readTree(s)
		want, wantErr := readIndependently(s)
		if errors.Is(wantErr, errNotCompared) {
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("readTree(%q) = %v, want %v", s, err, wantErr)
		}
		if err != nil {
			return
		}
		data := appendNode(nil, root, true, "")
		var got any
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%q gives %s: %v", s, data, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q gives %s, want %v", s, data, want)
		}
	})
}

var errNotCompared = errors.New("not compared")

// readIndependently makes what json.Unmarshal would make of a document's data, by a way as
// far as possible from readTree's: the checking, name-space aware half of encoding/xml, and
// recursion.
func readIndependently(s string) (any, error) {
	s = strings.TrimPrefix(s, "\ufeff")
	if len(s) > maxSize {
		return nil, errors.New("too long")
	}
	for _, m := range regexp.MustCompile(`&#(x?)([0-9a-fA-F]+);`).FindAllStringSubmatch(s, -1) {
		base := 10
		if m[1] != "" {
			base = 16
		}
		if r, err := strconv.ParseInt(m[2], base, 32); err == nil && 0xd800 <= r && r <= 0xdfff {
			return nil, errNotCompared // it could stand in CDATA: the table test has it
		}
	}
	r := &reader{s: s, d: xml.NewDecoder(strings.NewReader(s))}
	var root any
	for {
		token, isCDATA, err := r.next()
		switch {
		case errors.Is(err, io.EOF) && root != nil:
			return root, nil
		case err != nil:
			return nil, err
		}
		switch token := token.(type) {
		case xml.StartElement:
			if root != nil {
				return nil, errors.New("two roots")
			}
			if root, err = r.element(token, "", 1); err != nil {
				return nil, err
			}
			if text, ok := root.(string); ok {
				root = map[string]any{}
				if text != "" {
					root = map[string]any{"#text": text}
				}
			}
		case xml.CharData:
			if isCDATA || len(bytes.Trim(token, blank)) > 0 {
				return nil, errors.New("text outside the root")
			}
		}
	}
}

type reader struct {
	s     string
	d     *xml.Decoder
	count int
}

func (r *reader) next() (token xml.Token, isCDATA bool, err error) {
	from := r.d.InputOffset()
	token, err = r.d.Token()
	if err != nil {
		return nil, false, err
	}
	if _, ok := token.(xml.Directive); ok {
		return nil, false, errors.New("directive")
	}
	return xml.CopyToken(token), strings.HasPrefix(r.s[from:r.d.InputOffset()], "<![CDATA["), nil
}

func (r *reader) element(start xml.StartElement, parent string, depth int) (any, error) {
	r.count += 1 + len(start.Attr)
	if depth > maxDepth || r.count > maxElements {
		return nil, errors.New("limit")
	}
	if start.Name.Space != "" || strings.Contains(start.Name.Local, ":") {
		return nil, errNotCompared // name spaces are translated: the table test has them
	}
	object := map[string]any{}
	for _, a := range start.Attr {
		if a.Name.Space != "" || a.Name.Local == "xmlns" || strings.Contains(a.Name.Local, ":") {
			return nil, errNotCompared
		}
		if _, ok := object["@"+a.Name.Local]; ok {
			return nil, errors.New("attribute twice")
		}
		object["@"+a.Name.Local] = a.Value
	}

	// Texts outside CDATA are trimmed at the ends of the whole: mark what must stay.
	const open, end = "\uf8ff<", "\uf8ff>" // no text can hold <
	text := ""
	for {
		token, isCDATA, err := r.next()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.CharData:
			if strings.Contains(string(token), "\uf8ff") {
				return nil, errNotCompared
			}
			if isCDATA && len(token) > 0 {
				text += open + string(token) + end
			} else {
				text += string(token)
			}
		case xml.StartElement:
			kid, err := r.element(token, start.Name.Local, depth+1)
			if err != nil {
				return nil, err
			}
			name := token.Name.Local
			list, isList := object[name].([]any)
			switch {
			case isList:
				object[name] = append(list, kid)
			case object[name] != nil:
				object[name] = []any{object[name], kid}
			case listed(start.Name.Local, depth, name):
				object[name] = []any{kid}
			default:
				object[name] = kid
			}
		case xml.EndElement:
			text = strings.Trim(text, blank)
			text = strings.NewReplacer(open, "", end, "").Replace(text)
			if len(object) == 0 {
				return text, nil
			}
			if text != "" {
				object["#text"] = text
			}
			return object, nil
		}
	}
}

// listed looks the table up, for a document that is not a doc_change.
func listed(parent string, depth int, child string) bool {
	if depth == 1 {
		parent = ""
	}
	for _, row := range repeatable {
		if row.parent == parent && row.child == child {
			return parent != "" || child != "DocId"
		}
	}
	return false
}

// FuzzJSON compares what is found in JSON with what encoding/json finds.
func FuzzJSON(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Plaintext)
	}
	for _, s := range treeSeeds {
		f.Add(s)
	}
	f.Add(`{"a":1,"a":{"b":"\n","b":-1.5e3,"c":{"d":[{}]}},"e":true,"":"","f":"x"}`)
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.HasPrefix(s, "{") || !json.Valid([]byte(s)) || !utf8.ValidString(s) {
			return
		}
		fields, ok := jsonFields(nil, strings.TrimRight(s, blank))
		if !ok {
			return
		}
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatal(err)
		}
		check := func(parent, name string, value any) {
			switch value.(type) {
			case string, json.Number:
			default:
				return
			}
			for i := range fields {
				if f := &fields[i]; f.parent == parent && f.name == name {
					if got := f.text(); got != fmt.Sprint(value) {
						t.Errorf("%q: %s.%s = %q, want %q", s, parent, name, got, value)
					}
					return
				}
			}
			t.Errorf("%q: no %s.%s", s, parent, name)
		}
		seen := map[string]bool{}
		for i := range fields {
			if fields[i].parent == "" && seen[fields[i].name] {
				return // decoding merges objects under a key that stands twice
			}
			seen[fields[i].name] = true
		}
		for name, value := range want {
			check("", name, value)
			if object, ok := value.(map[string]any); ok && name != "" {
				for key, value := range object {
					check(name, key, value)
				}
			}
		}
	})
}
