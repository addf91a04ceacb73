package codec

import (
	"fmt"
	"math"
	"testing"
)

func TestItemsIterateOverAllBlocks(t *testing.T) {
	array, m := &Node{Kind: Array, Elem: &Node{Kind: String}}, &Node{Kind: Map, Elem: &Node{Kind: Long}}
	str := func(dst []byte, text string) []byte { return AppendString(dst, text) }
	sized := AppendLong(AppendLong(nil, -2), 4) // two items in four bytes
	sized = str(str(sized, "a"), "b")
	sized = append(str(AppendLong(sized, 1), "c"), 0)
	entries := append(AppendLong(str(AppendLong(str(AppendLong(nil, 2), "x"), 7), "x"), 8), 0) // a duplicate key
	for _, c := range []struct {
		name string
		node *Node
		enc  []byte
		want string
	}{
		{"empty", array, []byte{0}, ""},
		{"blocks with and without a size", array, sized, "=a =b =c"},
		{"a map with a duplicate key", m, entries, "x=7 x=8"},
		{"no bytes", array, nil, "unexpected end of the input"},
		{"truncated in an item", array, []byte{2, 8, 'a'}, "bad_body: byte 0: a length of 4, but only 1 bytes are left"},
		{"truncated in a block", array, []byte{4, 0}, "= bad_body: byte 0: the body ends within a number"},
		{"an impossible item count", array, AppendLong(nil, math.MinInt64), "the item count of a block is out of range"},
	} {
		got := ""
		it := ItemsOf(c.node, c.enc)
		for it.Next() {
			v, _, _ := ReadText(it.Value)
			if c.node == m {
				n, _, _ := ReadLong(it.Value)
				v = fmt.Append(nil, n)
			}
			got += fmt.Sprintf(" %s=%s", it.Key, v)
		}
		if it.Err != nil {
			got += " " + it.Err.Error()
		}
		if got != " "+c.want && got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSkipReturnsTheRestAfterTheValue(t *testing.T) {
	s := readSchema(t, "OrderCreated")
	body := encodeEvent(t, s, orderEvent)
	rest, err := Skip(s.Root(), append(body[:len(body):len(body)], "rest"...))
	if err != nil || string(rest) != "rest" {
		t.Errorf("got rest %q, %v", rest, err)
	}
	if _, err := Skip(s.Root(), body[:len(body)-1]); err == nil {
		t.Error("a truncated value was skipped")
	}
}
