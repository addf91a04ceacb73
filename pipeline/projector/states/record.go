package states

import (
	"bytes"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// AppendRecord appends what the store keeps of a record whose event waits. If the event may
// depend on headers, these are all headers, after their negative number; otherwise only
// the one with the schema id.
func AppendRecord(dst []byte, in *pipeline.Record, headers bool) []byte {
	header, _ := in.Header(HeaderSchemaID)
	dst = codec.AppendLong(dst, in.Time.UnixMilli())
	dst = codec.AppendBytes(dst, in.Key)
	if headers && len(in.Headers) > 0 {
		dst = codec.AppendLong(dst, -int64(len(in.Headers)))
		for _, h := range in.Headers {
			dst = codec.AppendBytes(codec.AppendString(dst, h.Key), h.Value)
		}
		return append(dst, in.Value...)
	}
	dst = codec.AppendBytes(dst, header)
	return append(dst, in.Value...)
}

// ReadRecord reads what AppendRecord wrote. The record is a copy, and lacks its place.
func ReadRecord(enc []byte) (*pipeline.Record, error) {
	r := Fields{Rest: bytes.Clone(enc)}
	in := &pipeline.Record{Time: time.UnixMilli(r.Long()), Key: r.Text()}
	all := r
	if n := all.Long(); all.Err == nil && n < 0 {
		for r = all; n < 0 && r.Err == nil; n++ {
			in.Headers = append(in.Headers, pipeline.Header{Key: string(r.Text()), Value: r.Text()})
		}
	} else if header := r.Text(); len(header) > 0 {
		in.Headers = []pipeline.Header{{Key: HeaderSchemaID, Value: header}}
	}
	in.Value = r.Rest
	return in, r.Err
}
