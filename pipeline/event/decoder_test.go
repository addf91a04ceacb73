package event_test

import (
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
