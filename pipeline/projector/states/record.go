package states

import (
	"bytes"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
)

// null is the length of bytes that a record does not have. They differ from empty bytes in
// expressions.
const null = -1

// nullable is Text for bytes that may be missing; then it returns nil.
func (r *Fields) nullable() []byte {
	if peek := *r; peek.Long() == null && peek.Err == nil {
		*r = peek
		return nil
	}
	return r.Text()
}

// AppendRecord appends what the store keeps of a record whose event waits. Of the headers,
// these are those that the fold needs, after their negative number, and the one with the
// schema id, alone if the fold needs none.
func AppendRecord(dst []byte, in *pipeline.Record, f *fold.Fold) []byte {
	header, _ := in.Header(HeaderSchemaID)
	dst = codec.AppendLong(dst, in.Time.UnixMilli())
	if in.Key == nil && f.NeedsKey() {
		dst = codec.AppendLong(dst, null)
	} else {
		dst = codec.AppendBytes(dst, in.Key)
	}
	kept, needed := int64(0), false
	for _, h := range in.Headers {
		if needs := f.NeedsHeader(h.Key); needs || h.Key == HeaderSchemaID {
			kept, needed = kept+1, needed || needs
		}
	}
	if needed {
		dst = codec.AppendLong(dst, -kept)
		for _, h := range in.Headers {
			if h.Key == HeaderSchemaID || f.NeedsHeader(h.Key) {
				dst = codec.AppendString(dst, h.Key)
				if h.Value == nil {
					dst = codec.AppendLong(dst, null)
				} else {
					dst = codec.AppendBytes(dst, h.Value)
				}
			}
		}
		return append(dst, in.Value...)
	}
	dst = codec.AppendBytes(dst, header)
	return append(dst, in.Value...)
}

// ReadRecord reads what AppendRecord wrote. The record is a copy, and lacks its place.
func ReadRecord(enc []byte) (*pipeline.Record, error) {
	r := Fields{Rest: bytes.Clone(enc)}
	in := &pipeline.Record{Time: time.UnixMilli(r.Long()), Key: r.nullable()}
	all := r
	if n := all.Long(); all.Err == nil && n < 0 {
		for r = all; n < 0 && r.Err == nil; n++ {
			in.Headers = append(in.Headers, pipeline.Header{Key: string(r.Text()), Value: r.nullable()})
		}
	} else if header := r.Text(); len(header) > 0 {
		in.Headers = []pipeline.Header{{Key: HeaderSchemaID, Value: header}}
	}
	in.Value = r.Rest
	return in, r.Err
}
