// Package keyformat knows the formats of record keys. Every key has one text form,
// which is the id of its aggregate, the key of a table's row, and what commands show
// and accept.
//
// [Format] is immutable and safe for concurrent use.
package keyformat

import "millrace/pipeline/codec"

// Kind is the name of a format.
type Kind string

// The kinds. The zero Kind means Text.
const (
	Text  Kind = "text"  // UTF-8; the text form is the same
	Avro  Kind = "avro"  // a Confluent frame and an Avro body, of any schema
	Long  Kind = "long"  // 8 bytes, big-endian, two's complement; decimal
	Int   Kind = "int"   // 4 bytes, big-endian, two's complement; decimal
	UUID  Kind = "uuid"  // 16 bytes; xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, lower case
	Bytes Kind = "bytes" // any bytes; hexadecimal, lower case
)

// A Format is the format of the keys of a topic. The zero Format is Text.
type Format struct {
	Kind   Kind
	Schema *codec.Schema // of Avro keys
}

// IsText reports whether the bytes of a key are its text form.
func (f Format) IsText() bool { return f.Kind == "" || f.Kind == Text }

// String returns the kind, as a topology has it.
func (f Format) String() string {
	if f.IsText() {
		return string(Text)
	}
	return string(f.Kind)
}

// Equal reports whether both formats have the same bytes for the same key.
func (f Format) Equal(g Format) bool {
	if f.String() != g.String() {
		return false
	}
	return f.Kind != Avro || f.Schema == g.Schema || f.Schema != nil && g.Schema != nil && codec.SameBytes(f.Schema, g.Schema)
}
