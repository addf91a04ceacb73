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
