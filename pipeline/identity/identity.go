// Package identity knows what makes two events the same event. A topic declares the
// parts of the identity of its events. Everything that recognizes an event compares the
// bytes that are made of these parts, and only this package makes them:
//
//	reader, faults := id.Compile(schema, bare, topic) // per event type
//	reader.Paths()                                     // merged into the layout of the type
//	err := reader.Bind(layout)
//	bytes, ok, err := reader.Append(dst, headers, &view, &scope)
//
// The bytes of an identity with one part are the text of the part. With several parts,
// each part has its length in front, and a missing part differs from an empty one.
// [Identity.Text] and [Identity.Parse] convert between the bytes and a text for people.
//
// An [Identity] and a bound [Reader] are immutable and safe for concurrent use.
package identity

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

// An Identity is a list of parts. Without parts, events have no identity, and no
// duplicates are found.
type Identity []Part

// A Part is one part of an identity. Exactly one of Header, ID and Path is set.
type Part struct {
	// Header is the name of a header. Default is the value of an event whose record
	// does not have the header; "" for none.
	Header, Default string
	// ID is the event's own id: the field id, or the topic's expression for the id if the
	// events have no envelope.
	ID bool
	// Path is the path of a string field, or of a key in a map of strings.
	Path []string
}

// IsID reports whether the identity is the event's own id.
func (id Identity) IsID() bool { return len(id) == 1 && id[0].ID }

// HasID reports whether the event's own id is a part of the identity.
func (id Identity) HasID() bool {
	for i := range id {
		if id[i].ID {
			return true
		}
	}
	return false
}

// String returns the parts as a topology declares them.
func (id Identity) String() string { return "[" + strings.Join(id.Names(), ", ") + "]" }

// Names returns the parts as a topology declares each of them.
func (id Identity) Names() []string {
	words := make([]string, len(id))
	for i, p := range id {
		switch {
		case p.Header != "":
			words[i] = "headers." + p.Header
		case p.ID:
			words[i] = "id"
		default:
			words[i] = strings.Join(p.Path, ".")
		}
	}
	return words
}

// A text is where events have the text of a part of an identity.
type text struct {
	leaf []string // the path of the leaf that is or holds it
	at   within.Field
	key  string // of the entry in a map of strings; "" for a string
}

// Has reports whether events with a schema can have a text at a path: a string, which may
// be null, or a map of strings, whose key is then the last part of the path. Records on the
// way can be null. The path may start with "event".
func Has(s *codec.Schema, path []string) bool {
	_, ok := find(s, path)
	return ok
}

func find(s *codec.Schema, path []string) (t text, ok bool) {
	path = expr.FieldPath(s, path)
	for n := len(path); n >= max(1, len(path)-1); n-- {
		at, fault := within.FieldAt(s, path[:n])
		if fault != nil {
			continue
		}
		value := at.Node.NotNull()
		switch {
		case value.Kind == codec.String && n == len(path):
			return text{leaf: at.Leaf, at: at}, true
		case value.Kind == codec.Map && value.Elem.Kind == codec.String && n < len(path):
			return text{leaf: at.Leaf, at: at, key: path[n]}, true
		}
	}
	return text{}, false
}

// A Reader computes the identities of the events of one type. A nil Reader finds none.
type Reader struct {
	schema *codec.Schema
	parts  []part
	bare   *expr.BareType // holds the expression of the id; nil if the id is a field
}

// part is a Part for one event type.
type part struct {
	Part
	in   text // of a field; it has no leaf if the type lacks it
	slot int  // of the leaf
}

// Compile returns the reader for one event type. bare is nil if the events have an
// envelope. A part that the type does not have is always missing.
func (id Identity) Compile(s *codec.Schema, bare *expr.Bare, topic string) (*Reader, []expr.Fault) {
	if len(id) == 0 {
		return nil, nil
	}
	r := &Reader{schema: s}
	for _, p := range id {
		c := part{Part: p, slot: -1}
		if p.ID && bare != nil && bare.ID.Text != "" {
			only := expr.Bare{ID: bare.ID, RecordKey: bare.RecordKey}
			t, faults := only.Compile(s, topic)
			if len(faults) > 0 {
				return nil, faults
			}
			r.bare = &t
		} else if p.Header == "" {
			path := p.Path
			if p.ID {
				path = []string{"id"}
			}
			c.in, _ = find(s, path)
		}
		r.parts = append(r.parts, c)
	}
	return r, nil
}

// Paths returns the fields that the reader reads.
func (r *Reader) Paths() (paths [][]string) {
	if r == nil {
		return nil
	}
	for i := range r.parts {
		if leaf := r.parts[i].in.leaf; leaf != nil {
			paths = append(paths, leaf)
		}
	}
	if r.bare != nil {
		paths = append(paths, r.bare.Paths()...)
	}
	return paths
}

// Bind resolves the fields to slots of the layout, which has a slot for each of Paths.
func (r *Reader) Bind(layout *codec.Layout) error {
	if r == nil {
		return nil
	}
	for i := range r.parts {
		p := &r.parts[i]
		if p.in.leaf == nil {
			continue
		}
		if p.slot = layout.Slot(p.in.leaf...); p.slot < 0 {
			return fmt.Errorf("%s: the layout lacks %s, a part of the identity", r.schema.Name(), strings.Join(p.in.leaf, "."))
		}
	}
	if r.bare != nil {
		return r.bare.Bind(layout)
	}
	return nil
}

// Append appends the identity of an event to dst. headers are those of its record, and
// v shows the event in the layout of Bind. ok is false if the event has no identity,
// because all parts are missing. An error is of ClassReject.
func (r *Reader) Append(dst []byte, headers []pipeline.Header, v *pipeline.View, scope *expr.Scope) (_ []byte, ok bool, err error) {
	if r == nil {
		return dst, false, nil
	}
	start := len(dst)
	for i := range r.parts {
		p := &r.parts[i]
		n := len(dst)
		var has bool
		if p.ID && r.bare != nil {
			if dst, err = r.bare.AppendID(dst, scope); err != nil {
				return dst[:start], false, err
			}
			has = true
		} else {
			var text []byte
			if text, has, err = p.text(headers, v); err != nil {
				return dst[:start], false, err
			}
			dst = append(dst, text...)
		}
		if len(r.parts) > 1 {
			dst = prefix(dst, n, has)
		}
		ok = ok || has
	}
	if !ok {
		return dst[:start], false, nil
	}
	return dst, true, nil
}

// text returns the text of a part, and whether the event has it.
func (p *part) text(headers []pipeline.Header, v *pipeline.View) (text []byte, has bool, err error) {
	if p.Header != "" {
		for i := len(headers) - 1; i >= 0; i-- {
			if headers[i].Key == p.Header {
				return headers[i].Value, true, nil
			}
		}
		return []byte(p.Default), p.Default != "", nil
	}
	if p.slot < 0 {
		return nil, false, nil
	}
	n := p.in.at.Node
	enc, has, err := p.in.at.Get(v.Get(p.slot))
	if err != nil {
		return nil, false, pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", strings.Join(p.in.leaf, "."), err)
	}
	if !has {
		return nil, false, nil
	}
	if other, _, branch, ok := n.Nullable(); ok {
		at, rest, err := codec.ReadLong(enc)
		if err != nil {
			return nil, false, pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", strings.Join(p.in.leaf, "."), err)
		}
		if int(at) != branch {
			return nil, false, nil
		}
		enc, n = rest, other
	}
	if n.Kind != codec.Map {
		if text, _, err = codec.ReadText(enc); err != nil {
			err = pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", strings.Join(p.in.leaf, "."), err)
		}
		return text, err == nil, err
	}
	has = false
	it := codec.ItemsOf(n, enc)
	for it.Next() { // the last entry of a key is valid
		if string(it.Key) == p.in.key {
			if text, _, err = codec.ReadText(it.Value); err != nil {
				break
			}
			has = true
		}
	}
	if err == nil {
		err = it.Err
	}
	if err != nil {
		return nil, false, pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", strings.Join(p.in.leaf, "."), err)
	}
	return text, has, nil
}

// prefix puts the length of the part that starts at n in front of it, plus one; 0 for a
// missing part.
func prefix(dst []byte, n int, has bool) []byte {
	size := 0
	if has {
		size = len(dst) - n + 1
	}
	var room [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(room[:], uint64(size))
	dst = append(dst, room[:k]...)
	copy(dst[n+k:], dst[n:len(dst)-k])
	copy(dst[n:], room[:k])
	return dst
}

// Text returns the bytes of an identity for people. One part is shown as it is, several
// as a JSON list of texts, with null for a missing part.
func (id Identity) Text(b []byte) string {
	if len(id) <= 1 {
		return string(b)
	}
	parts := make([]*string, 0, len(id))
	for len(b) > 0 {
		size, k := binary.Uvarint(b)
		if k <= 0 || size > uint64(len(b)-k)+1 {
			return fmt.Sprintf("%x", b)
		}
		b = b[k:]
		if size == 0 {
			parts = append(parts, nil)
			continue
		}
		text := string(b[:size-1])
		parts, b = append(parts, &text), b[size-1:]
	}
	out, err := json.Marshal(parts)
	if err != nil {
		panic(err) // impossible: texts
	}
	return string(out)
}

// AppendText appends what Text returns. It allocates nothing for texts without special
// characters.
func (id Identity) AppendText(dst, b []byte) []byte {
	if len(id) <= 1 {
		return append(dst, b...)
	}
	start := len(dst)
	dst = append(dst, '[')
	for rest := b; len(rest) > 0; {
		if len(dst) > start+1 {
			dst = append(dst, ',')
		}
		size, k := binary.Uvarint(rest)
		if k <= 0 || size > uint64(len(rest)-k)+1 {
			return append(dst[:start], id.Text(b)...)
		}
		if rest = rest[k:]; size == 0 {
			dst = append(dst, "null"...)
			continue
		}
		dst = append(dst, '"')
		for _, c := range rest[:size-1] {
			if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
				return append(dst[:start], id.Text(b)...)
			}
			dst = append(dst, c)
		}
		dst, rest = append(dst, '"'), rest[size-1:]
	}
	return append(dst, ']')
}

// Parse returns the bytes of the identity that Text shows.
func (id Identity) Parse(text string) ([]byte, error) {
	if len(id) <= 1 {
		return []byte(text), nil
	}
	var parts []*string
	if err := json.Unmarshal([]byte(text), &parts); err != nil || len(parts) != len(id) {
		return nil, fmt.Errorf("%q is not an identity: write %s as a JSON list of %d texts", text, id, len(id))
	}
	var out []byte
	for _, p := range parts {
		n := len(out)
		if p != nil {
			out = append(out, *p...)
		}
		out = prefix(out, n, p != nil)
	}
	return out, nil
}
