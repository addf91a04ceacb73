package codec

// Open reports whether a value of the schema can exceed a limit of a walk although each
// of its parts is within the limits: a type contains itself, types are nested deeply, or
// the items of an array can have zero bytes. All other schemas need no check after
// parts are put together.
func (s *Schema) Open() bool { return s.open }

// CheckWritten checks a body that was put together from parts that had been checked one
// by one, before it is written. Every reader accepts what it accepts. It costs nothing
// unless the schema is [Schema.Open]. An error is of pipeline.ClassReject.
func (s *Schema) CheckWritten(body []byte) error {
	if !s.open {
		return nil
	}
	return Validate(s.root, body)
}

// ValidatePart does the same as [Validate] for a value that will be at the given depth
// in a record: 1 for its fields.
func ValidatePart(n *Node, enc []byte, depth int) error {
	w := walker{buf: enc}
	pos := w.value(n, 0, depth)
	if w.msg != "" {
		return w.err("")
	}
	return w.ended(pos, "value")
}

// isOpen implements [Schema.Open] for a type at a depth. around holds the records around it.
// It visits at most left types; if that does not suffice, the type counts as open.
func isOpen(n *Node, depth int, around map[*Node]bool, left *int) bool {
	if *left--; *left < 0 || depth > maxWalkDepth || around[n] {
		return true
	}
	switch n.Kind {
	case Array:
		types := maxLeaves
		return !neverEmpty(n.Elem, &types) || isOpen(n.Elem, depth+1, around, left)
	case Map:
		return isOpen(n.Elem, depth+1, around, left)
	case Union:
		for _, b := range n.Branches {
			if isOpen(b, depth+1, around, left) {
				return true
			}
		}
	case Record:
		around[n] = true
		defer delete(around, n)
		for i := range n.Fields {
			if isOpen(n.Fields[i].Type, depth+1, around, left) {
				return true
			}
		}
	}
	return false
}
