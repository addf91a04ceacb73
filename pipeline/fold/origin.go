package fold

import (
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/keyformat"
)

// An Origin holds the text form of the key, the timestamp and the headers of the record of
// an event. Key and timestamp are the key and the time of an event without an envelope,
// unless [Spec.Bare] has an expression for them. Expressions may read the headers, and they
// may be parts of the event's identity.
type Origin struct {
	Key     []byte
	BadKey  error // why the record has no key of the format; of pipeline.ClassReject
	Time    int64 // in microseconds since 1970
	Headers []pipeline.Header
	RawKey  []byte // what expressions read: the key; the body of an Avro key, read with the schema of the format
}

// OriginOf returns the origin of the event in a record. key is the record's key as it was
// read, nil if the format of the keys is text. It is small enough to be inlined.
func OriginOf(in *pipeline.Record, key *keyformat.Key) (o Origin) {
	o = Origin{Key: in.Key, Time: in.Time.UnixMicro(), Headers: in.Headers, RawKey: in.Key}
	if key != nil {
		o.Key, o.BadKey, o.RawKey = key.Text, key.Err, key.Value
	}
	return o
}

// Metadata is what the expressions of a fold read of the record of an event. The history
// keeps it, so that the event can be folded again.
type Metadata struct {
	Key     []byte            // Origin.RawKey; nil if there is none, or if no expression reads it
	Headers []pipeline.Header // the text headers that expressions may read
}

// Metadata returns what the expressions for the event of the last Read may read of its
// record. ok is false if they read nothing of it. It is valid until the next Read, or until
// the record changes.
func (f *Folder) Metadata() (m Metadata, ok bool) {
	if f.typ == Tombstone || !f.types[f.typ].reads {
		return m, false
	}
	use := &f.types[f.typ].metadata
	f.headers = use.AppendRead(f.headers[:0], f.record.Headers)
	m.Headers = f.headers
	if use.Key {
		m.Key = f.record.Key
	}
	return m, true
}

// NeedsKey reports whether an expression reads the key of the record.
func (f *Fold) NeedsKey() bool { return f.metadata.Key }

// NeedsHeader reports whether the effect of an event may depend on a header of its record:
// it may be a part of the identity, name the schema of the key, or be read by an expression.
func (f *Fold) NeedsHeader(name string) bool {
	if f.HasIdentity() || f.spec.Keys.Kind == keyformat.Avro {
		return true
	}
	return f.metadata.AllHeaders || slices.Contains(f.metadata.Names, name)
}

// RecordID returns the key of a record as the id of its aggregate, where the event does not
// contain the id; nil if the key is not the id, or cannot be one. key is the record's key as
// it was read, nil if the format of the keys is text.
func (f *Fold) RecordID(in *pipeline.Record, key *keyformat.Key) []byte {
	id := in.Key
	if key != nil {
		id = key.Text
	}
	if !f.KeyIsAggregateID() || CheckID(id) != nil {
		return nil
	}
	return id
}

// AggregateKey returns the key of an aggregate: its id, without its window.
func (f *Fold) AggregateKey(id string) []byte {
	if f.Window().Size > 0 {
		if key, _, ok := ParseWindowID(id); ok {
			id = key
		}
	}
	return []byte(id)
}
