package codec

import (
	"errors"
	"strings"
	"testing"

	"millrace/pipeline"
)

// An ordinary event must not need the walker. TestWalkLaws checks that program and
// walker agree, because Validate uses only the walker.
func TestOrdinaryEventsNeedNoWalker(t *testing.T) {
	s := shopSchema(t, "OrderCreated")
	body, err := EncodeJSON(s, decodeJSON(t, orderJSON))
	if err != nil {
		t.Fatal(err)
	}
	layout, err := NewLayout(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range layout.program {
		layout.program[i].node = &Node{Kind: Fixed, Size: 1 << 40} // the walker always fails on this type
	}
	if !layout.program.walk(body, new(pipeline.View), layout.steps) {
		t.Error("the event is left to the walker")
	}
	for cut := range body {
		if layout.program.walk(body[:cut], new(pipeline.View), layout.steps) {
			t.Errorf("the program accepts the first %d bytes", cut)
		}
	}
}

// The program checks UTF-8 per run of texts and one-byte values. Yet each text must be
// valid on its own.
func TestEachTextMustBeUTF8(t *testing.T) {
	s := mustParse(t, `{"type": "record", "name": "R", "fields": [
		{"name": "a", "type": "string"},
		{"name": "n", "type": "long"},
		{"name": "b", "type": ["null", "string"]},
		{"name": "m", "type": {"type": "map", "values": "string"}},
		{"name": "x", "type": {"type": "array", "items": {"type": "record", "name": "I", "fields": [{"name": "s", "type": "string"}, {"name": "d", "type": "double"}]}}},
		{"name": "y", "type": "bytes"},
		{"name": "z", "type": "string"}]}`)
	layout, err := NewLayout(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 100) // its length takes two bytes
	for _, test := range []struct {
		name        string
		a, b, k, v  string
		item, bytes string
		z           string
		n           int64
		bad         string // the field that is not UTF-8
	}{
		{name: "ASCII", a: "a", b: "b", k: "channel", v: "web", item: "i", bytes: "y", z: "z"},
		{name: "empty texts"},
		{name: "characters of two and three bytes", a: "Åäö", b: "都市", k: "ключ", v: "京都", item: "é", bytes: "\xff", z: "ñ"},
		{name: "a number of several bytes between texts", a: "Åäö", n: 1 << 40, b: "ñ"},
		{name: "long texts", a: long + "Å", n: 1 << 40, b: long + "都", v: long, item: long, z: long + "ñ"},
		{name: "half a character at the end", a: "a\xc3", b: "b", bad: "a"},
		{name: "a character split over two texts", a: "a\xc3", b: "\xa4b", bad: "a"},
		{name: "only the second half of a character", b: "\xa4b", bad: "b"},
		{name: "an invalid key", k: "\xff", bad: "m[0]"},
		{name: "a character split over a key and a value", k: "a\xc3", v: "\xa4b", bad: "m[0]"},
		{name: "an invalid text in an item", item: "\xff", bad: "x[0].s"},
		{name: "an invalid text after bytes", bytes: "\xff", z: "a\xff", bad: "z"},
		{name: "an invalid text before a long one", a: "\xff", b: long, bad: "a"},
		{name: "an invalid long text", a: "Å", b: long + "\xff", bad: "b"},
	} {
		body := AppendBytes(nil, []byte(test.a))
		body = AppendLong(body, test.n)
		body = AppendBytes(AppendLong(body, 1), []byte(test.b))
		body = AppendBytes(AppendBytes(AppendLong(body, 1), []byte(test.k)), []byte(test.v))
		body = AppendBytes(append(body, 0, 2), []byte(test.item))
		body = append(body, 1, 2, 3, 4, 5, 6, 0xf8, 0xff, 0)
		body = AppendBytes(AppendBytes(body, []byte(test.bytes)), []byte(test.z))

		err := layout.Walk(body, new(pipeline.View))
		var walk *WalkError
		switch {
		case test.bad == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.bad == "" && !layout.program.walk(body, new(pipeline.View), layout.steps):
			t.Errorf("%s: the body is left to the walker", test.name)
		case test.bad != "" && (!errors.As(err, &walk) || walk.Path != test.bad || walk.Msg != "a string that is not UTF-8"):
			t.Errorf("%s: got %v, want an error that %s is not UTF-8", test.name, err, test.bad)
		}
	}
}

func TestValidUTF8AgreesWithTheStandardLibrary(t *testing.T) {
	for n := range 140 {
		b := []byte(strings.Repeat("x", n))
		if !validUTF8(b) {
			t.Errorf("%d ASCII bytes are refused", n)
		}
		for at := range b {
			b[at] = 0xff
			if validUTF8(b) {
				t.Errorf("of %d bytes, an invalid byte at %d is accepted", n, at)
			}
			b[at] = 'x'
			if at > 0 {
				copy(b[at-1:], "é")
				if !validUTF8(b) {
					t.Errorf("of %d bytes, a two-byte character at %d is refused", n, at-1)
				}
				copy(b[at-1:], "xx")
			}
		}
	}
}
