package pending

import (
	"math"
	"slices"

	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Windows bounds the search for expired windows.
type Windows struct {
	family  store.Family // start and id of each window -> nothing
	first   int64        // no earlier window is in the store; math.MinInt64 if that is unknown
	unsaved int64        // the earliest window since the last flush
}

// NewWindows returns Windows whose entries are in a family.
func NewWindows(family store.Family) Windows {
	return Windows{family: family, first: math.MinInt64, unsaved: math.MaxInt64}
}

// Open adds a window.
func (w *Windows) Open(b *store.Batch, part *store.Part, start int64, id string) {
	b.Put(part, w.family, states.WindowKey(start, id), nil)
	w.first, w.unsaved = min(w.first, start), min(w.unsaved, start)
}

// Written notes that the batch is in the store.
func (w *Windows) Written() { w.unsaved = math.MaxInt64 }

// Expire removes windows in the store that begin before a limit, at most so many, and returns
// their ids.
func (w *Windows) Expire(b *store.Batch, part *store.Part, limit int64, most int) (ids []string, err error) {
	if w.first >= limit {
		return nil, nil
	}
	v := part.View()
	defer v.Close() //nolint:errcheck // only read
	if err := v.Scan(w.family, nil, states.WindowKey(limit, ""), false, func(key, _ []byte) bool {
		ids = append(ids, string(key[8:]))
		b.Delete(part, w.family, slices.Clone(key))
		return len(ids) < most
	}); err != nil {
		return nil, err
	}
	if len(ids) < most {
		// The view does not have the windows that this batch opens.
		w.first = min(limit, w.unsaved)
	}
	return ids, nil
}
