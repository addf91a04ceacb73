package internalrecord

// Records are the last records of a partition.
type Records struct {
	Checkpoint Checkpoint
	Found      bool  // a checkpoint
	Sent       int64 // dead letters below are sent
	Skipped    Offsets
	Blocked    map[string]Place // Nowhere if a record says that it is not blocked
}

// Take takes a record; a snapshot is ignored. One that cannot be read is an error, and
// changes nothing.
func (r *Records) Take(key, value []byte) error {
	switch kind, id := KindOf(key); kind {
	case OfCheckpoint:
		c, err := DecodeCheckpoint(value)
		if err != nil {
			return err
		}
		r.Checkpoint, r.Found = c, true
	case OfSent:
		sent, err := DecodeSent(value)
		if err != nil {
			return err
		}
		r.Sent = max(r.Sent, sent)
	case OfSkipped:
		return r.Skipped.Decode(value)
	case OfBlocked:
		at, err := PlaceOf(id, value)
		if err != nil {
			return err
		}
		if r.Blocked == nil {
			r.Blocked = map[string]Place{}
		}
		r.Blocked[id] = at
	case OfLater, Other:
	}
	return nil
}
