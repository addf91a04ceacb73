package pipeline

// A Span is a half-open range of bytes within an Avro body.
type Span struct{ Start, End int }

// A View is an Avro body seen as the few fields that somebody reads or writes.
// The fields are the slots of a layout (codec.Layout), in the order in which
// they stand in the body, and never overlap. A field's value is always its
// Avro encoding: reading it costs no decoding, replacing it no copy of the rest.
//
// The zero View is empty; codec.Layout.Walk fills it.
type View struct {
	Body   []byte
	fields []field
	dirty  bool
}

type field struct {
	span Span
	set  []byte // replaces the span if not nil
}

// Reset points the view at a body of n slots, all unset. It keeps the memory
// of the body before, so a view that is reused allocates nothing.
func (v *View) Reset(body []byte, n int) {
	v.Body, v.dirty = body, false
	if cap(v.fields) < n {
		v.fields = make([]field, n)
	}
	v.fields = v.fields[:n]
	clear(v.fields)
}

// Copy makes v what from is now, in memory of its own: what is set in one of
// them later is not seen in the other.
func (v *View) Copy(from *View) {
	v.Body, v.dirty = from.Body, from.dirty
	v.fields = append(v.fields[:0], from.fields...)
}

// SetSpan says where slot i stands in the body.
func (v *View) SetSpan(i int, s Span) { v.fields[i].span = s }

// Len returns the number of slots.
func (v *View) Len() int { return len(v.fields) }

// Get returns the Avro encoding of slot i as it stands now. The caller must not
// change it.
func (v *View) Get(i int) []byte {
	f := &v.fields[i]
	if f.set != nil {
		return f.set
	}
	return v.Body[f.span.Start:f.span.End]
}

// Set replaces the value of slot i by enc, the Avro encoding of a value of the
// slot's type. enc must stay unchanged as long as the view is in use.
func (v *View) Set(i int, enc []byte) {
	if enc == nil {
		enc = []byte{} // null encodes as no bytes at all
	}
	v.fields[i].set = enc
	v.dirty = true
}

// Changed reports whether any slot was set since the last Reset.
func (v *View) Changed() bool { return v.dirty }

// Append appends the body to dst, with the slots that were set spliced in and
// everything else copied as it is.
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
