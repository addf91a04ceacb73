package fold

import "millrace/pipeline"

// OriginOf returns the key and the timestamp of a record, which stand in for the
// envelope of events that have none.
func OriginOf(in *pipeline.Record) Origin {
	return Origin{Key: in.Key, Time: in.Time.UnixMicro()}
}
