package states

// TailIDs recognizes duplicates in the tail of a log while the index of the past is still
// being filled. It has a filter of the ids of all events of the past, whether they were
// applied or not, and the ids of the tail. It never guesses: where neither tells, an event is
// undecided, and has to wait for the index. It has no lock: see the package comment.
type TailIDs struct {
	filter []uint64 // blocks of eight words, one cache line each
	tail   map[eventName]tailID

	last eventName // of Decide
}

// tailID is the place of an event of the tail. If it is in doubt, it may have been applied
// or not.
type tailID struct {
	offset int64
	doubt  bool
}

// Decision is what is known of an event's id.
type Decision int

// Values of Decision.
const (
	Undecided Decision = iota
	IsNew
	IsDuplicate
)

const (
	idBits    = 32 // per event of the past: about one new id in 100,000 is undecided
	idBitsMin = 12 // one in 200; with less, it is not worth reading the ids
	idProbes  = 8
	tailMost  = 1 << 20 // ids of the tail
)

// NewTailIDs returns TailIDs for a number of events of the past, which take at most memory
// bytes. It returns nil if that is not enough.
func NewTailIDs(events int64, memory int) *TailIDs {
	bits := min(idBits, int64(memory)*8/max(1, events))
	if bits < idBitsMin {
		return nil
	}
	return &TailIDs{filter: make([]uint64, 8*(events*bits/512+1)), tail: map[eventName]tailID{}}
}

// Bytes returns the size of the filter.
func (t *TailIDs) Bytes() int { return 8 * len(t.filter) }

// Full reports that there is no room for more ids of the tail.
func (t *TailIDs) Full() bool { return len(t.tail) >= tailMost }

// AddPast adds an event of the past. The aggregate is as for [Index.Known].
func (t *TailIDs) AddPast(aggregate, id []byte) {
	if len(id) == 0 {
		return
	}
	name := eventNameOf(id)
	name.scope = scopeOf(aggregate)
	hash := name.hash()
	b := t.block(hash)
	for range idProbes {
		hash = hash*0x9e3779b97f4a7c15 + 1
		b[hash>>61] |= 1 << (hash >> 55 & 63)
	}
}

func (t *TailIDs) block(hash uint64) *[8]uint64 {
	at := (hash >> 32) * (uint64(len(t.filter)) / 8) >> 32 * 8
	return (*[8]uint64)(t.filter[at:])
}

// isPast reports false only if the id is not one of the past.
func (t *TailIDs) isPast(hash uint64) bool {
	b := t.block(hash)
	for range idProbes {
		hash = hash*0x9e3779b97f4a7c15 + 1
		if b[hash>>61]&(1<<(hash>>55&63)) == 0 {
			return false
		}
	}
	return true
}

// Decide decides whether an event was applied before, at another offset. The arguments are
// those of [Index.Known], which has found nothing.
func (t *TailIDs) Decide(aggregate, id []byte, offset int64) Decision {
	if len(id) == 0 {
		return IsNew
	}
	t.last = eventNameOf(id)
	t.last.scope = scopeOf(aggregate)
	if t.isPast(t.last.hash()) {
		return Undecided
	}
	switch at, ok := t.tail[t.last]; {
	case !ok || at.offset == offset:
		return IsNew
	case at.doubt:
		return Undecided
	}
	return IsDuplicate
}

// Applied notes that the event of the last Decide, which has an id, was applied.
func (t *TailIDs) Applied(offset int64) { t.tail[t.last] = tailID{offset: offset} }

// Doubt notes that the event of the last Decide may have been applied: snapshots contain
// events up to its offset.
func (t *TailIDs) Doubt(offset int64) {
	if _, ok := t.tail[t.last]; !ok {
		t.tail[t.last] = tailID{offset, true}
	}
}
