package codec

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"millrace/pipeline"
)

func readSchema(t testing.TB, name string) *Schema {
	t.Helper()
	text, err := os.ReadFile("../../schemas/" + name + ".avsc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSchema(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const orderEvent = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","type":"OrderCreated","timestamp":"1997-01-01T00:00:00.050Z","version":1,
	"metadata":{"source":"cdnow"},"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77}],"total_amount":11.77}}`

func encodeEvent(t testing.TB, s *Schema, text string) []byte {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	enc, err := EncodeJSON(s, v)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

func TestWalkFindsLeavesAndSpliceReplacesThem(t *testing.T) {
	s := readSchema(t, "OrderCreated")
	body := encodeEvent(t, s, orderEvent)
	l, err := NewLayout(s, [][]string{{"data", "total_amount"}, {"data", "user_id"}, {"metadata"}, {"data", "user_id"}})
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 3 || l.Slot("metadata") != 0 || l.Slot("data", "user_id") != 1 || l.Slot("data", "total_amount") != 2 || l.Slot("id") != -1 {
		t.Fatal("the slots are not in the order of the body")
	}
	var v pipeline.View
	if err := l.Walk(body, &v); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := ReadText(v.Get(1)); string(got) != "u-00001" {
		t.Errorf("user_id is %q", got)
	}
	if got, _, _ := ReadDouble(v.Get(2)); got != 11.77 {
		t.Errorf("total_amount is %v", got)
	}
	v.Set(2, AppendDouble(nil, 12))
	v.Set(1, AppendString(nil, "another user"))
	out := v.Append(nil)
	want := strings.NewReplacer("11.77}}", "12}}", "u-00001", "another user").Replace(orderEvent)
	if string(out) != string(encodeEvent(t, s, want)) {
		t.Error("the spliced body differs from the encoding of the changed event")
	}
}

func BenchmarkWalk(b *testing.B) {
	s := readSchema(b, "OrderCreated")
	body := encodeEvent(b, s, orderEvent)
	l, err := NewLayout(s, [][]string{{"data", "total_amount"}, {"metadata"}})
	if err != nil {
		b.Fatal(err)
	}
	var v pipeline.View
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Walk(body, &v); err != nil {
			b.Fatal(err)
		}
	}
}
