package fold

import "millrace/pipeline"

// OriginOf returns the origin of the event in a record.
func OriginOf(in *pipeline.Record) Origin {
	return Origin{Key: in.Key, Time: in.Time.UnixMicro(), Headers: in.Headers}
}
