package pipeline

// A Span is a half-open range of bytes within an Avro body.
type Span struct{ Start, End int }

// A View gives access to the fields of an Avro body that some stage reads or
// writes. The fields are the slots of a layout (codec.Layout). They are in the
// order of the body and do not overlap. The value of a field is its Avro encoding,
// so a read needs no decoding, and a replacement needs no copy of the body.
//
// The zero View is empty; codec.Layout.Walk fills it. A View has one owner at a
// time, as the event that contains it.
type View struct {
	Body []byte
	// Record holds the event, for expressions that read its key and headers. It is nil
	// if that is unknown. Reset keeps it.
	Record *Record
	// KeyBody is the body of the record's Avro key, read with the schema of the topic's
	// keys. It is nil for keys of other formats. Reset keeps it.
	KeyBody []byte

	fields []field
	dirty  bool
}

type field struct {
	span Span
	set  []byte // replaces the span if not nil
}

// Reset makes v a view of body with n unset slots. It reuses memory, so a reused
// View does not allocate.
func (v *View) Reset(body []byte, n int) {
	v.Body, v.dirty = body, false
	if cap(v.fields) < n {
		v.fields = make([]field, n)
	}
	v.fields = v.fields[:n]
	clear(v.fields)
}

// Copy makes v a copy of from. A later Set on one of them does not affect the
// other. They share the bytes of the body and of the values.
func (v *View) Copy(from *View) {
	v.Body, v.Record, v.KeyBody, v.dirty = from.Body, from.Record, from.KeyBody, from.dirty
	v.fields = append(v.fields[:0], from.fields...)
}

// SetSpan sets the position of slot i in the body.
func (v *View) SetSpan(i int, s Span) { v.fields[i].span = s }

// Len returns the number of slots.
func (v *View) Len() int { return len(v.fields) }

// Get returns the current Avro encoding of slot i. The caller must not change it.
func (v *View) Get(i int) []byte {
	f := &v.fields[i]
	if f.set != nil {
		return f.set
	}
	return v.Body[f.span.Start:f.span.End]
}

// Set replaces the value of slot i with enc, the Avro encoding of a value of the
// slot's type. enc must stay unchanged while the view is in use.
func (v *View) Set(i int, enc []byte) {
	if enc == nil {
		enc = []byte{} // the encoding of null is empty
	}
	v.fields[i].set = enc
	v.dirty = true
}

// Changed reports whether any slot was set since the last Reset.
func (v *View) Changed() bool { return v.dirty }

// Append appends the body to dst. It replaces the slots that were set and copies
// all other bytes unchanged.
func (v *View) Append(dst []byte) []byte {
	if !v.dirty {
		return append(dst, v.Body...)
	}
	at := 0
	for i := range v.fields {
		f := &v.fields[i]
		if f.set == nil {
			continue
		}
		dst = append(dst, v.Body[at:f.span.Start]...)
		dst = append(dst, f.set...)
		at = f.span.End
	}
	return append(dst, v.Body[at:]...)
}
