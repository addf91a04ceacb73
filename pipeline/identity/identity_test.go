package identity_test

import (
	"bytes"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/identity"
)

const schema = `{"type": "record", "name": "T", "fields": [
	{"name": "id", "type": "string"},
	{"name": "tenant", "type": ["null", "string"]},
	{"name": "metadata", "type": {"type": "map", "values": "string"}}]}`

var all = identity.Identity{{Header: "ce_source", Default: "shop"}, {Path: []string{"metadata", "source"}}, {Path: []string{"tenant"}}, {ID: true}}

// event is an event and its record's headers; nil is a missing part.
type event struct {
	id                     string
	tenant, source, header *string
}

func (e event) body() []byte {
	body := codec.AppendString(nil, e.id)
	if e.tenant == nil {
		body = codec.AppendLong(body, 0)
	} else {
		body = codec.AppendString(codec.AppendLong(body, 1), *e.tenant)
	}
	if e.source != nil {
		body = codec.AppendString(codec.AppendString(codec.AppendLong(body, 1), "source"), *e.source)
	}
	return codec.AppendLong(body, 0)
}

// of returns the identity of an event.
func of(t interface{ Fatal(...any) }, id identity.Identity, bare *expr.Bare, e event) ([]byte, bool) {
	s, err := codec.ParseSchema(schema)
	if err != nil {
		t.Fatal(err)
	}
	r, faults := id.Compile(s, bare, "in")
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	layout, err := codec.NewLayout(s, r.Paths())
	if err == nil {
		err = r.Bind(layout)
	}
	var v pipeline.View
	if err == nil {
		err = layout.Walk(e.body(), &v)
	}
	var headers []pipeline.Header
	if e.header != nil {
		headers = []pipeline.Header{{Key: "ce_source", Value: []byte("older")}, {Key: "ce_source", Value: []byte(*e.header)}}
	}
	var scope expr.Scope
	scope.Reset(time.Time{}, &v)
	var b []byte
	var ok bool
	if err == nil {
		b, ok, err = r.Append(nil, headers, &v, &scope)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b, ok
}

// Two events have the same identity if and only if all parts are the same. A missing part
// differs from an empty one, and the boundaries of parts count.
func TestIdentitiesAreEqualIfAndOnlyIfAllPartsAre(t *testing.T) {
	part := rapid.Ptr(rapid.SampledFrom([]string{"", "a", "b", "ab", "\x01a", "\x02"}), true)
	one := rapid.Custom(func(t *rapid.T) event {
		return event{rapid.SampledFrom([]string{"", "1", "b1", "\x02b"}).Draw(t, "id"), part.Draw(t, "tenant"), part.Draw(t, "source"), part.Draw(t, "header")}
	})
	same := func(a, b *string) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }
	rapid.Check(t, func(t *rapid.T) {
		a, b := one.Draw(t, "a"), one.Draw(t, "b")
		x, okX := of(t, all, nil, a)
		y, okY := of(t, all, nil, b)
		want := a.id == b.id && same(a.tenant, b.tenant) && same(a.source, b.source) && same(a.header, b.header)
		if !okX || !okY || bytes.Equal(x, y) != want {
			t.Fatalf("%+v has %q, %+v has %q, want equal: %v", a, x, b, y, want)
		}
		text := all.Text(x)
		if back, err := all.Parse(text); err != nil || !bytes.Equal(back, x) {
			t.Fatalf("%s became %q, %v, want %q", text, back, err, x)
		}
	})
}

func TestIdentityOfOnePartIsItsText(t *testing.T) {
	source := "/a"
	for want, id := range map[string]identity.Identity{
		"1":  {{ID: true}},
		"/a": {{Path: []string{"metadata", "source"}}},
		"":   {{Path: []string{"tenant"}}},
	} {
		b, ok := of(t, id, nil, event{id: "1", source: &source})
		if string(b) != want || ok != (want != "") {
			t.Errorf("%s is %q, %v, want %q", id, b, ok, want)
		}
	}
	b, _ := of(t, identity.Identity{{ID: true}}, &expr.Bare{ID: expr.Source{Text: "'no ' + id"}}, event{id: "1"})
	if string(b) != "no 1" {
		t.Errorf("the id by expression is %q", b)
	}
}

func TestMissingSourceIsTheTopicsOwn(t *testing.T) {
	source := "shop"
	ce := all[:1:1]
	ce = append(ce, identity.Part{ID: true})
	with, _ := of(t, ce, nil, event{id: "1", header: &source})
	without, _ := of(t, ce, nil, event{id: "1"})
	if !bytes.Equal(with, without) || ce.Text(with) != `["shop","1"]` || ce.String() != "[headers.ce_source, id]" {
		t.Errorf("%s is %s with the header and %s without", ce, ce.Text(with), ce.Text(without))
	}
	if _, err := ce.Parse("1"); err == nil {
		t.Error("an id alone was accepted as an identity of two parts")
	}
}

// A part within records that are null is missing, as a null is.
func TestPartsWithinNullableRecords(t *testing.T) {
	s, err := codec.ParseSchema(`{"type": "record", "name": "T", "fields": [{"name": "n", "type": "int"}, {"name": "at", "type": ["null", {"type": "record", "name": "At", "fields": [
		{"name": "n", "type": "int"}, {"name": "id", "type": ["null", "string"]},
		{"name": "more", "type": [{"type": "record", "name": "More", "fields": [{"name": "tags", "type": {"type": "map", "values": "string"}}]}, "null"]}]}]}]}`)
	if err != nil {
		t.Fatal(err)
	}
	id := identity.Identity{{Path: []string{"at", "id"}}, {Path: []string{"at", "more", "tags", "source"}}}
	r, faults := id.Compile(s, nil, "in")
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	layout, err := codec.NewLayout(s, r.Paths())
	if err == nil {
		err = r.Bind(layout)
	}
	if err != nil {
		t.Fatal(err)
	}
	for body, want := range map[string]string{
		"\x02\x00":                                           "",
		"\x02\x02\x02\x00\x02":                               "",
		"\x02\x02\x02\x02\x06u-1\x02":                        `["u-1",null]`,
		"\x02\x02\x02\x02\x06u-1\x00\x00":                    `["u-1",null]`,
		"\x02\x02\x02\x02\x06u-1\x00\x02\x0csource\x02x\x00": `["u-1","x"]`,
		"\x02\x02\x02\x00\x00\x02\x0csource\x00\x00":         `[null,""]`,
	} {
		var v pipeline.View
		var scope expr.Scope
		if err := layout.Walk([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		b, ok, err := r.Append(nil, nil, &v, &scope)
		if got := id.Text(b); err != nil || ok != (want != "") || ok && got != want {
			t.Errorf("%x is %s, %v, %v, want %s", body, got, ok, err, want)
		}
	}
	for _, path := range [][]string{{"at", "n"}, {"at", "more"}, {"at", "more", "tags"}, {"at", "more", "tags", "a", "b"}, {"at", "none"}, {"none", "id"}, {}} {
		if identity.Has(s, path) {
			t.Errorf("%v is the path of a text", path)
		}
	}
}
