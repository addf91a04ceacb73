package fold

import (
	"millrace/pipeline"
	"millrace/pipeline/keyformat"
)

// OriginOf returns the origin of the event in a record. key is the record's key as it was
// read, nil if the format of the keys is text.
func OriginOf(in *pipeline.Record, key *keyformat.Key) Origin {
	o := Origin{Key: in.Key, Time: in.Time.UnixMicro(), Headers: in.Headers}
	if key != nil {
		o.Key, o.BadKey = key.Text, key.Err
	}
	return o
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
