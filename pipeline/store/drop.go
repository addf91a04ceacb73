package store

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Projections returns the names of the projections that have parts, sorted.
func (s *Store) Projections() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.parts {
		names = append(names, n.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Drop deletes all parts of a projection. A [Part] that a caller still holds is empty, and
// the caller must not write to it any more.
func (s *Store) Drop(projection string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.db.NewBatch()
	defer b.Close() //nolint:errcheck // the commit has its own error
	var err error
	var gone []partName
	for n, p := range s.parts {
		if n.name != projection {
			continue
		}
		gone = append(gone, n)
		err = errors.Join(err,
			b.Delete(n.key(), nil),
			b.DeleteRange(binary.BigEndian.AppendUint32(nil, p.id), binary.BigEndian.AppendUint32(nil, p.id+1), nil))
	}
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return s.check(err)
	}
	for _, n := range gone {
		delete(s.parts, n)
	}
	return nil
}

// Purge removes deleted entries of the part from the disk. A delete only hides an entry
// until the next compaction of its tables, so Purge flushes and compacts the part.
func (p *Part) Purge() error {
	s := p.store
	s.Compact()
	if err := s.db.Flush(); err != nil {
		return s.check(err)
	}
	return s.check(s.db.Compact(context.Background(), p.key(nil, 0, nil), binary.BigEndian.AppendUint32(nil, p.id+1), false))
}
