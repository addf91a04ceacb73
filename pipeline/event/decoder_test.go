package event_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/event/eventtest"
)

// framed returns a record with a body of the schema with the id.
func framed(t *testing.T, id int, s *codec.Schema, value map[string]any) *pipeline.Record {
	t.Helper()
	body, err := codec.EncodeJSON(s, value)
	if err != nil {
		t.Fatal(err)
	}
	return &pipeline.Record{Value: append(codec.AppendFrame(nil, id), body...)}
}

// A writer's schema with more symbols and branches than ours is read. Only the events
// whose values do not fit are rejected, and the error names the field.
func TestDecoderDecidesPerValue(t *testing.T) {
	writer := eventtest.Schema(t, `{"type":"record","name":"Paid","fields":[
		{"name":"status","type":{"type":"enum","name":"Status","symbols":["NEW","DONE","LATE"]}},
		{"name":"note","type":["null","string"]}]}`)
	ours := eventtest.Schema(t, `{"type":"record","name":"Paid","fields":[
		{"name":"note","type":"string"},
		{"name":"status","type":{"type":"enum","name":"Status","symbols":["NEW","DONE"]}}]}`)
	d := event.NewDecoder(eventtest.Schemas{7: writer}, []*codec.Schema{ours}, nil)
	for _, test := range []struct {
		status string
		note   any
		want   string
	}{
		{"DONE", "x", `{"note":"x","status":"DONE"}`},
		{"LATE", "x", `bad_schema: Paid cannot be read with our schema: status: Status has no symbol "LATE", and no default`},
		{"NEW", nil, `bad_schema: Paid cannot be read with our schema: note: null cannot become string`},
		{"NEW", "y", `{"note":"y","status":"NEW"}`},
	} {
		out, err := d.Decode(t.Context(), framed(t, 7, writer, map[string]any{"status": test.status, "note": test.note}), nil)
		got := ""
		if err != nil {
			got = err.Error()
		} else if text, err := codec.AppendJSON(nil, ours.Root(), out.Body); err != nil {
			t.Fatal(err)
		} else {
			got = string(text)
		}
		if got != test.want {
			t.Errorf("%s, %v: got %s, want %s", test.status, test.note, got, test.want)
		}
	}
}

// The event type is ours of the same name, without namespace or by an alias of ours. A
// name that matches several types without a better one is an error that says so.
func TestDecoderMatchesTypesByName(t *testing.T) {
	record := func(name, more string) *codec.Schema {
		return eventtest.Schema(t, `{"type":"record","name":"`+name+`",`+more+`"fields":[{"name":"n","type":"int"}]}`)
	}
	ours := []*codec.Schema{record("prod.db.New", ""), record("prod.Renamed", `"aliases":["dev.Former"],`), record("a.Twin", ""), record("b.Twin", "")}
	for writer, want := range map[string]string{
		"dev.db.New": "prod.db.New", "prod.db.New": "prod.db.New", "New": "prod.db.New",
		"dev.Former": "prod.Renamed", "other.Former": "unknown_type: event type other.Former is not among the types of this topic in the topology: prod.db.New, prod.Renamed, a.Twin, b.Twin",
		"b.Twin": "b.Twin", "c.Twin": "unknown_type: event type c.Twin is ambiguous: it matches a.Twin and b.Twin; add an alias to one of them",
	} {
		s := record(writer, "")
		d := event.NewDecoder(eventtest.Schemas{1: s}, ours, nil)
		out, err := d.Decode(t.Context(), framed(t, 1, s, map[string]any{"n": 7}), nil)
		got := ours[out.Type].Name()
		if err != nil {
			got = err.Error()
		} else if string(out.Body) != "\x0e" {
			t.Errorf("%s: the body is %x", writer, out.Body)
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", writer, got, want)
		}
	}
}

// A union of records as the writer's schema holds several event types. Its branches are
// decided one by one.
func TestDecoderReadsUnionsOfEventTypes(t *testing.T) {
	writer := eventtest.Schema(t, `[{"type":"record","name":"w.One","fields":[{"name":"n","type":"int"}]},
		{"type":"record","name":"w.Two","fields":[{"name":"one","type":["null","One"]},{"name":"gone","type":"string"}]},
		{"type":"record","name":"w.Other","fields":[]}, "null"]`)
	ours := []*codec.Schema{
		eventtest.Schema(t, `{"type":"record","name":"Two","fields":[{"name":"one","type":["null",{"type":"record","name":"One","fields":[{"name":"n","type":"long"}]}]}]}`),
		eventtest.Schema(t, `{"type":"record","name":"One","fields":[{"name":"n","type":"int"}]}`),
	}
	d := event.NewDecoder(eventtest.Schemas{1: writer}, ours, nil)
	for _, test := range []struct{ body, want string }{
		{"\x00\x0e", "One 0e"},
		{"\x02\x02\x0e\x02x", "Two 020e"},
		{"\x04", "unknown_type: event type w.Other is not among the types of this topic in the topology: Two, One"},
		{"\x06", "unknown_type: event type null is not among the types of this topic in the topology: Two, One"},
		{"\x08", "bad_body: branch 4 of a union of 4"},
		{"\x01", "bad_body: branch -1 of a union of 4"},
		{"", "bad_body: the branch of a union: unexpected end of the input"},
	} {
		out, err := d.Decode(t.Context(), &pipeline.Record{Value: append(codec.AppendFrame(nil, 1), test.body...)}, nil)
		got := fmt.Sprintf("%s %x", ours[out.Type].Name(), out.Body)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%x: got %s, want %s", test.body, got, test.want)
		}
	}
}

// The fields that a writer added are logged once for each topic and writer's schema, by
// all decoders of a process together.
func TestDroppedFieldsAreLoggedOncePerWriter(t *testing.T) {
	ours := eventtest.Schema(t, `{"type":"record","name":"Paid","fields":[{"name":"id","type":"string"}]}`)
	more := eventtest.Schema(t, `{"type":"record","name":"Paid","fields":[{"name":"id","type":"string"},{"name":"segment","type":"string"},
		{"name":"data","type":["null",{"type":"record","name":"D","fields":[]}]}]}`)
	var out bytes.Buffer
	drift := event.NewDrift(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	for _, topic := range []string{"a", "a", "b"} {
		d := event.NewDecoder(eventtest.Schemas{1: ours, 7: more}, []*codec.Schema{ours}, nil)
		d.LogDrift(drift)
		for range 3 {
			for _, r := range []*pipeline.Record{
				framed(t, 1, ours, map[string]any{"id": "x"}),
				framed(t, 7, more, map[string]any{"id": "x", "segment": "y", "data": nil}),
			} {
				r.Topic = topic
				if _, err := d.Decode(t.Context(), r, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	const line = `level=WARN msg="the writer's schema has fields that ours lacks: they are dropped; add them to our schema to keep them" topic=%s type=Paid schema="id 7" fields="segment, data" more=0` + "\n"
	if want := fmt.Sprintf(line, "a") + fmt.Sprintf(line, "b"); out.String() != want {
		t.Errorf("logged\n%swant\n%s", &out, want)
	}
}
