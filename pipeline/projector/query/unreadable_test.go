package query

import (
	"testing"

	"millrace/pipeline/codec"
)

// One such state does not fail a list of others.
func TestAStateThatHasNoJSONIsShownAsUnreadable(t *testing.T) {
	s, err := codec.ParseSchema(`{"type": "record", "name": "S", "fields": [{"name": "a", "type": "string"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	d := Description{State: s}
	it, err := newItem(d, Aggregate{ID: "x", State: []byte{0x7f}})
	if err != nil || string(it.State) != "null" || it.Hidden["*"] != "unreadable" {
		t.Errorf("%+v, %v", it, err)
	}
}
