package expr

import (
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

// A MapUpdate sets entries of a map, as [raw.AppendMap] does, to the results of
// programs. One goroutine at a time may use it.
type MapUpdate struct {
	set      raw.Set // the values of its entries are slices of its Encoded
	programs []*Program
	spans    []pipeline.Span // of the values in set.Encoded

	// The next call reuses set.Encoded if the programs would return the same again.
	steady bool             // no program reads a field
	clock  func() time.Time // for now(); nil if no program has now()
	at     instant          // the time at which set was made
	valid  bool             // set is complete
}

// NewMapUpdate returns an update of maps of type n. The keys are distinct. The
// programs are bound, and each returns a value of the map.
func NewMapUpdate(n *codec.Node, keys [][]byte, programs []*Program) *MapUpdate {
	u := &MapUpdate{set: raw.Set{Node: n}, programs: programs, spans: make([]pipeline.Span, len(keys)), steady: true}
	for i, key := range keys {
		u.set.Entries = append(u.set.Entries, raw.Entry{Key: key})
		u.steady = u.steady && len(programs[i].refs)+len(programs[i].guards) == 0
		if programs[i].clock != nil {
			u.clock = programs[i].clock
		}
	}
	return u
}

// Append evaluates the programs in the scope and appends the map enc with the
// entries set to the results. On an error, which is that of [Program.AppendIn], it
// returns dst unchanged.
func (u *MapUpdate) Append(dst []byte, s *Scope, enc []byte) ([]byte, error) {
	if !u.steady || !u.valid || u.clock != nil && s.time(u.clock) != u.at {
		if err := u.write(s); err != nil {
			return dst, err
		}
	}
	return u.set.Append(dst, enc)
}

// write evaluates the programs and encodes the entries.
func (u *MapUpdate) write(s *Scope) error {
	u.valid = false
	out := u.set.Encoded[:0]
	for i := range u.set.Entries {
		out = raw.AppendKey(out, u.set.Entries[i].Key)
		u.spans[i].Start = len(out)
		var err error
		if out, err = u.programs[i].AppendIn(s, out); err != nil {
			return err
		}
		u.spans[i].End = len(out)
	}
	for i, at := range u.spans {
		u.set.Entries[i].Value = out[at.Start:at.End:at.End]
	}
	u.set.Encoded, u.valid = out, true
	if u.clock != nil {
		u.at = s.time(u.clock)
	}
	return nil
}
