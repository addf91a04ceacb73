package app

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"millrace/pipeline/codec"
	"millrace/pipeline/fold"
	"millrace/pipeline/query"
)

// What workers, and the commands that compare versions, ask a worker for. It is no
// part of the API for others:
//
//	GET /internal/v1/versions                              what runs here: []runningVersion
//	GET /internal/v1/versions/{name}/{version}/{partition}?at=
//	                                                       a partition's states, as of an offset
//	GET /internal/v1/scan/{name}/{version}?after=          all that this worker has, by id
//	GET /internal/v1/positions/{name}/{version}            how far its partitions are: []query.Position
//	GET /internal/v1/outcome/{name}/{version}?event=&wait= what it knows of an event: outcomePart
//	GET /internal/v1/events/{name}/{version}?page=         its part of a list of events: eventsPart
//	GET /internal/v1/blocked/{name}/{version}?page=        its part of what is blocked: blockedPart
//	POST /internal/v1/release/{name}/{version}?id=&skip=   releases what is blocked here: releasedPart
//	GET /internal/v1/feed/{name}/{version}?start=          follows partitions of it: feedLine, and so on
//	GET /internal/v1/forgotten/{name}/{id}                 when nothing is left of an aggregate: forgotten

// runningVersion is a version that runs on a worker.
type runningVersion struct {
	Projection string          `json:"projection"`
	Version    int             `json:"version"`
	Offsets    map[int32]int64 `json:"offsets"` // next to be folded, by partition
	at         string          `json:"-"`       // address of the worker
}

// stateLine is an aggregate as of an offset. The last line of an answer has End.
type stateLine struct {
	ID      string          `json:"id,omitempty"`
	Version int64           `json:"version,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	State   json.RawMessage `json:"state,omitempty"`
	// Unknown says that the aggregate has changed since, and that there is no
	// history to tell how it was.
	Unknown bool `json:"unknown,omitempty"`
	End     bool `json:"end,omitempty"`
}

func (v *versions) serveInternal(mux interface{ Handle(string, http.Handler) }) {
	mux.Handle("GET /internal/v1/versions", http.HandlerFunc(v.serveVersions))
	mux.Handle("GET /internal/v1/versions/{name}/{version}/{partition}", http.HandlerFunc(v.serveStates))
	mux.Handle("GET /internal/v1/scan/{name}/{version}", http.HandlerFunc(v.serveScan))
	mux.Handle("GET /internal/v1/positions/{name}/{version}", v.serveReader((*projectionReader).servePositions))
	mux.Handle("GET /internal/v1/outcome/{name}/{version}", v.serveReader((*projectionReader).serveOutcome))
	mux.Handle("GET /internal/v1/events/{name}/{version}", v.serveReader((*projectionReader).serveEvents))
	mux.Handle("GET /internal/v1/blocked/{name}/{version}", v.serveReader((*projectionReader).serveBlockedPart))
	mux.Handle("POST /internal/v1/release/{name}/{version}", v.serveReader((*projectionReader).serveRelease))
	mux.Handle("GET /internal/v1/feed/{name}/{version}", v.serveReader((*projectionReader).serveFeed))
	mux.Handle("GET /internal/v1/forgotten/{name}/{id}", http.HandlerFunc(v.serveForgotten))
}

func (v *versions) serveVersions(w http.ResponseWriter, _ *http.Request) {
	out := []runningVersion{}
	for _, l := range v.all() {
		if v.replica {
			break // it is asked what owners have
		}
		for i, wanted := range l.wanted {
			r := runningVersion{Projection: wanted.name, Version: wanted.Version, Offsets: map[int32]int64{}}
			for _, lane := range l.readers[i].fresh() {
				if !l.ps.has(unitKey{lane.source.Topic, lane.source.Partition}) {
					continue
				}
				if next, ok, err := lane.part.Position(); err == nil && ok {
					r.Offsets[lane.source.Partition] = next
				}
			}
			out = append(out, r)
		}
	}
	writeJSON(w, http.StatusOK, out)
}

// has reports whether a partition is assigned to this worker.
func (ps *projections) has(key unitKey) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.units[key] != nil
}

func (v *versions) serveStates(w http.ResponseWriter, r *http.Request) {
	number, err1 := strconv.Atoi(r.PathValue("version"))
	partition, err2 := strconv.ParseInt(r.PathValue("partition"), 10, 32)
	at, err3 := strconv.ParseInt(r.FormValue("at"), 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, l := range v.all() {
		for i, wanted := range l.wanted {
			if wanted.name != r.PathValue("name") || wanted.Version != number {
				continue
			}
			reader := l.readers[i]
			for _, lane := range reader.fresh() {
				if lane.source.Partition != int32(partition) {
					continue
				}
				w.Header().Set("Content-Type", "application/x-ndjson")
				buffered := bufio.NewWriterSize(w, 64<<10)
				enc := json.NewEncoder(buffered)
				err := reader.statesAt(r.Context(), lane, at, func(line stateLine) error { return enc.Encode(line) })
				if err == nil {
					err = errors.Join(enc.Encode(stateLine{End: true}), buffered.Flush())
				}
				if err != nil {
					v.w.log.Warn("states could not be handed out; whoever asked sees that the end is missing", "projection", wanted.name, "version", number, "partition", partition, "err", err)
				}
				return
			}
		}
	}
	http.Error(w, "this worker does not have it", http.StatusMisdirectedRequest)
}

// statesAt calls f with the aggregates of a partition, in order of their ids, as
// they were when all below an offset was folded, and nothing else. The partition
// must have got that far.
func (r *projectionReader) statesAt(ctx context.Context, l *lane, at int64, f func(stateLine) error) (err error) {
	view := l.part.View()
	defer func() { err = errors.Join(err, view.Close()) }()
	next, ok, err := view.Position()
	if err != nil {
		return err
	}
	if !ok || next < at {
		return fmt.Errorf("partition %d is at offset %d, and not yet at %d", l.source.Partition, next, at)
	}
	dec := newDecoder(r.registry, r.types, nil)
	var a fold.Aggregate
	var failed error
	err = view.Scan(familyState, nil, nil, false, func(key, value []byte) bool {
		if failed = errors.Join(fold.ReadAggregate(value, &a), ctx.Err()); failed != nil {
			return false
		}
		line := stateLine{ID: string(key), Version: a.Version, Deleted: a.Deleted}
		state := a.State
		if a.Offset >= at {
			p := &past{r: r, lane: l, view: view, id: slices.Clone(key), latest: a, next: next, decoder: dec}
			before, was, err := p.before(ctx, at)
			switch {
			case errors.Is(err, query.ErrNoVersion), errors.Is(err, query.ErrNoHistory):
				line.Unknown = true
			case err != nil:
				failed = err
				return false
			case !was:
				return true // it was not there yet
			}
			line.Version, line.Deleted, state = before.Version, before.Deleted, before.State
		}
		if !line.Unknown {
			if line.State, failed = codec.AppendJSON(nil, r.p.fold.State().Root(), state); failed != nil {
				return false
			}
		}
		failed = f(line)
		return failed == nil
	})
	return errors.Join(failed, err)
}

// before returns the aggregate as it was before the event at an offset; was is
// false if it was not there.
func (p *past) before(ctx context.Context, offset int64) (a fold.Aggregate, was bool, err error) {
	if !p.r.history {
		return a, false, query.ErrNoHistory
	}
	version, seen := int64(0), false
	if err := p.events(1, p.latest.Version, true, func(v int64, e indexed) bool {
		seen = true
		if e.offset >= offset {
			return true
		}
		version = v
		return false
	}); err != nil {
		return a, false, err
	}
	if !seen {
		return a, false, p.incomplete(p.latest.Version)
	}
	if version == 0 {
		return a, false, nil
	}
	a, err = p.at(ctx, version, nil)
	return a, true, err
}
