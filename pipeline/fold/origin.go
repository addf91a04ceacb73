package fold

import (
	"millrace/pipeline"
)

// OriginOf returns what a record says of its event.
func OriginOf(in *pipeline.Record) Origin {
	return Origin{Key: in.Key, Time: in.Time.UnixMicro()}
}
