package codec

import (
	"encoding/binary"
	"fmt"

	"millrace/pipeline"
)

// Confluent's framing, version 0: a zero byte, the schema's id in four bytes,
// big-endian, and the Avro body. In version 1 the value is the bare Avro body, and a
// header names the schema: a byte of 1 and the schema's GUID. A header can also hold the
// zero byte and the id of version 0. If a value has both, the header counts. The same
// applies to keys, with a header of their own.
//
// Source: Confluent's "Wire format" in the Schema Registry documentation.
const (
	frameMagic     = 0x00
	frameSize      = 5
	guidMagic      = 0x01
	headerSchemaID = "__value_schema_id"
	headerKeyID    = "__key_schema_id"
)

// A SchemaRef names a schema in the registry.
type SchemaRef struct {
	ID     int
	GUID   [16]byte
	ByGUID bool // GUID names the schema, not ID
}

// String returns "id 7", or "guid" and the GUID.
func (r SchemaRef) String() string {
	if r.ByGUID {
		g := r.GUID
		return fmt.Sprintf("guid %x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
	}
	return fmt.Sprintf("id %d", r.ID)
}

// FrameSize is the number of bytes that [AppendFrame] appends.
const FrameSize = 5

// AppendFrame appends the version 0 frame, which precedes the Avro body.
func AppendFrame(dst []byte, id int) []byte {
	return binary.BigEndian.AppendUint32(append(dst, frameMagic), uint32(id))
}

// Unframe returns the schema of the record's value and its Avro body. The body shares
// memory with the record. An error is of pipeline.ClassReject and describes the value.
func Unframe(r *pipeline.Record) (SchemaRef, []byte, error) {
	v := r.Value
	if v == nil {
		return SchemaRef{}, nil, pipeline.Reject(pipeline.ReasonTombstone, "the value is null (a tombstone), expected an event")
	}
	return unframe(r, v, headerSchemaID)
}

// UnframeID is the fast path of [Unframe] for the usual case: a record without headers,
// with a frame of version 0. It is not ok for other records.
func UnframeID(r *pipeline.Record) (id int, body []byte, ok bool) {
	v := r.Value
	if len(r.Headers) > 0 || len(v) < frameSize || v[0] != frameMagic {
		return 0, nil, false
	}
	return int(binary.BigEndian.Uint32(v[1:])), v[frameSize:], true
}

// UnframeKey returns the schema of the record's key and its Avro body, as [Unframe] does
// for the value.
func UnframeKey(r *pipeline.Record) (SchemaRef, []byte, error) {
	return unframe(r, r.Key, headerKeyID)
}

func unframe(r *pipeline.Record, v []byte, header string) (SchemaRef, []byte, error) {
	if h, ok := r.Header(header); ok {
		switch {
		case len(h) == 1+16 && h[0] == guidMagic:
			return SchemaRef{GUID: [16]byte(h[1:]), ByGUID: true}, v, nil
		case len(h) == frameSize && h[0] == frameMagic:
			return SchemaRef{ID: int(binary.BigEndian.Uint32(h[1:]))}, v, nil
		}
		return SchemaRef{}, nil, pipeline.Reject(pipeline.ReasonBadFrame, "header %s has %d bytes, expected a byte of 1 and a 16-byte GUID", header, len(h))
	}
	if len(v) >= frameSize && v[0] == frameMagic {
		return SchemaRef{ID: int(binary.BigEndian.Uint32(v[1:]))}, v[frameSize:], nil
	}
	return SchemaRef{}, nil, pipeline.Reject(pipeline.ReasonBadFrame, "no Confluent frame (a zero byte and a 4-byte schema id): %s", looksLike(v))
}

// looksLike describes a value without a frame.
func looksLike(v []byte) string {
	switch {
	case len(v) == 0:
		return "the value is empty"
	case v[0] == frameMagic:
		return fmt.Sprintf("the value ends after %d bytes", len(v))
	case v[0] == '{' || v[0] == '[':
		return "it looks like JSON"
	case len(v) >= 10 && v[0] == 0xc3 && v[1] == 0x01:
		return "it is Avro in single-object encoding"
	case len(v) >= 18 && v[0] == 0x03:
		return "it looks like AWS Glue's framing"
	case len(v) >= 4 && string(v[:4]) == "Obj\x01":
		return "it is an Avro container file"
	}
	return fmt.Sprintf("the first byte is 0x%02x", v[0])
}
