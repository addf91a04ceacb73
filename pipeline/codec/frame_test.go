package codec_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// UnframeID takes only records that Unframe takes, with the same result, and all records
// without headers that have a frame.
func TestTheFastUnframeAgreesWithUnframe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &pipeline.Record{Value: rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "value")}
		if rapid.Bool().Draw(t, "framed") {
			r.Value = append([]byte{0}, r.Value...)
		}
		if rapid.Bool().Draw(t, "header") {
			r.Headers = []pipeline.Header{{Key: "__value_schema_id", Value: []byte{0, 0, 0, 0, 7}}}
		}
		ref, body, err := codec.Unframe(r)
		id, fast, ok := codec.UnframeID(r)
		if want := err == nil && len(r.Headers) == 0; ok != want {
			t.Fatalf("UnframeID is ok: %v, want %v", ok, want)
		}
		if ok && (ref != codec.SchemaRef{ID: id} || !bytes.Equal(fast, body)) {
			t.Errorf("UnframeID returned %d and %x, Unframe %v and %x", id, fast, ref, body)
		}
	})
}
