package keyformat

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A Key is the key of a record as a [Reader] reads it.
type Key struct {
	Text  []byte // the text form
	Value []byte // the key of the record; the body of an Avro key, read with the schema of the format
	// Err is of ClassReject: the key does not have the format. Text and Value are empty.
	Err error

	format Format // with the writer's schema, if that is known
	raw    []byte // the key of the record
	id     int    // of the writer's schema
	framed bool   // raw begins with the id
}

// Read reads the key of a record. It is valid until the next Read, or until the record
// changes. An error means that the schema of an Avro key is not available at the moment.
func (r *Reader) Read(ctx context.Context, in *pipeline.Record) (*Key, error) {
	k := &r.key
	*k = Key{Text: k.Text[:0], format: Format{Kind: r.format.Kind}, raw: in.Key}
	if r.format.Kind == Avro {
		w, body, err := r.avro(ctx, in)
		if err != nil {
			k.Err = err
			return k.orError()
		}
		k.Value, k.format.Schema = r.body, w.schema
		if k.framed = len(body) == len(in.Key)-codec.FrameSize; k.framed {
			k.id = int(binary.BigEndian.Uint32(in.Key[1:]))
		}
		if k.Text, k.Err = appendAvroText(k.Text, w.schema.Root(), body); k.Err != nil {
			k.Value = nil
		}
		return k.orError()
	}
	if k.Text, k.Err = r.AppendText(ctx, k.Text, in); k.Err == nil {
		k.Value = in.Key
	}
	return k.orError()
}

func (k *Key) orError() (*Key, error) {
	if k.Err == nil || pipeline.ClassOf(k.Err) == pipeline.ClassReject {
		return k, nil
	}
	return nil, k.Err
}

// Clone returns a deep copy; nil of nil.
func (k *Key) Clone() *Key {
	if k == nil {
		return nil
	}
	c := *k
	c.Text, c.Value, c.raw = slices.Clone(k.Text), slices.Clone(k.Value), slices.Clone(k.raw)
	return &c
}

// AppendLike appends the bytes of the key that has a text form and is otherwise written
// like this one: an Avro key with the same schema. An error means that no such key has
// the text form.
func (k *Key) AppendLike(dst, text []byte) ([]byte, error) {
	switch {
	case k.format.Kind != Avro:
		return k.format.AppendKey(dst, text)
	case k.Err != nil:
		return dst, k.Err
	case bytes.Equal(text, k.Text):
		return append(dst, k.raw...), nil
	}
	key, err := k.format.Encode(string(text), func(*codec.Schema) int { return k.id })
	if err != nil {
		return dst, err
	}
	if !k.framed {
		key = key[codec.FrameSize:]
	}
	return append(dst, key...), nil
}
