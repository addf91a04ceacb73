package pending

import (
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Skips are the offsets of events that a release skipped.
type Skips struct {
	Offsets  internalrecord.Offsets
	Unsaved  bool // the store lacks some
	Due      bool // the snapshots topic lacks some
	Deferred bool // like Due, after the open transaction
}

// Add skips an offset. sending reports that a transaction is open.
func (s *Skips) Add(offset int64, sending bool) {
	s.Offsets.Add(offset)
	s.Unsaved = true
	if sending {
		s.Deferred = true
	} else {
		s.Due = true
	}
}

// Load reads what the store has under a key.
func (s *Skips) Load(part *store.Part, family store.Family, key []byte) error {
	value, ok, err := part.Get(nil, family, key)
	if ok && err == nil {
		if err = s.Offsets.Decode(value); err != nil {
			err = states.Damaged(key, err)
		}
	}
	return err
}

// Write adds to the batch what the store lacks, under a key.
func (s *Skips) Write(b *store.Batch, part *store.Part, family store.Family, key []byte) error {
	if !s.Unsaved {
		return nil
	}
	value, err := s.Offsets.Encode()
	if err == nil {
		b.Put(part, family, key, value)
	}
	return err
}
