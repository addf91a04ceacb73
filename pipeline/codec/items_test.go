package codec

import (
	"fmt"
	"math"
	"testing"
)

func TestItemsGoThroughAllBlocks(t *testing.T) {
	array, m := &Node{Kind: Array, Elem: &Node{Kind: String}}, &Node{Kind: Map, Elem: &Node{Kind: Long}}
	str := func(dst []byte, text string) []byte { return AppendString(dst, text) }
	sized := AppendLong(AppendLong(nil, -2), 4) // two items in four bytes
	sized = str(str(sized, "a"), "b")
	sized = append(str(AppendLong(sized, 1), "c"), 0)
	entries := append(AppendLong(str(AppendLong(str(AppendLong(nil, 2), "x"), 7), "x"), 8), 0) // a key twice
	for _, c := range []struct {
		name string
		node *Node
		enc  []byte
		want string
	}{
		{"empty", array, []byte{0}, ""},
		{"blocks with and without their size", array, sized, "=a =b =c"},
		{"a map, whose keys may repeat", m, entries, "x=7 x=8"},
		{"nothing", array, nil, "the bytes end too soon"},
		{"an end within an item", array, []byte{2, 8, 'a'}, "bad_body: byte 0: a length of 4, but only 1 bytes are left"},
		{"an end within a block", array, []byte{4, 0}, "= bad_body: byte 0: the body ends within a number"},
		{"a number of items that cannot be", array, AppendLong(nil, math.MinInt64), "a block of items out of range"},
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

func TestSkipEndsWhereTheValueDoes(t *testing.T) {
	s := readSchema(t, "OrderCreated")
	body := encodeEvent(t, s, orderEvent)
	rest, err := Skip(s.Root(), append(body[:len(body):len(body)], "rest"...))
	if err != nil || string(rest) != "rest" {
		t.Errorf("%q, %v", rest, err)
	}
	if _, err := Skip(s.Root(), body[:len(body)-1]); err == nil {
		t.Error("a value that is cut off was skipped")
	}
}
