package projector

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"millrace/pipeline/projector/projection"
	"millrace/pipeline/worker"
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

// RunningVersion is a version that runs on a worker.
type RunningVersion struct {
	Projection string          `json:"projection"`
	Version    int             `json:"version"`
	Offsets    map[int32]int64 `json:"offsets"` // next to be folded, by partition
	At         string          `json:"-"`       // address of the worker
}

func (v *versions) serveInternal(mux interface{ Handle(string, http.Handler) }) {
	mux.Handle("GET /internal/v1/versions", http.HandlerFunc(v.serveVersions))
	mux.Handle("GET /internal/v1/versions/{name}/{version}/{partition}", http.HandlerFunc(v.serveStates))
	mux.Handle("GET /internal/v1/scan/{name}/{version}", http.HandlerFunc(v.serveScan))
	mux.Handle("GET /internal/v1/positions/{name}/{version}", v.serveReader((*projection.Reader).ServePositions))
	mux.Handle("GET /internal/v1/outcome/{name}/{version}", v.serveReader((*projection.Reader).ServeOutcome))
	mux.Handle("GET /internal/v1/events/{name}/{version}", v.serveReader((*projection.Reader).ServeEvents))
	mux.Handle("GET /internal/v1/blocked/{name}/{version}", v.serveReader((*projection.Reader).ServeBlockedPart))
	mux.Handle("POST /internal/v1/release/{name}/{version}", v.serveReader((*projection.Reader).ServeRelease))
	mux.Handle("GET /internal/v1/feed/{name}/{version}", v.serveReader((*projection.Reader).ServeFeed))
	mux.Handle("GET /internal/v1/forgotten/{name}/{id}", http.HandlerFunc(v.serveForgotten))
}

func (v *versions) serveVersions(w http.ResponseWriter, _ *http.Request) {
	out := []RunningVersion{}
	for _, l := range v.all() {
		if v.replica {
			break // it is asked what owners have
		}
		for i, wanted := range l.wanted {
			r := RunningVersion{Projection: wanted.name, Version: wanted.Version, Offsets: map[int32]int64{}}
			for _, lane := range l.readers[i].Fresh() {
				if !l.ps.Has(projection.Key{Topic: lane.Source.Topic, Partition: lane.Source.Partition}) {
					continue
				}
				if next, ok, err := lane.Part.Position(); err == nil && ok {
					r.Offsets[lane.Source.Partition] = next
				}
			}
			out = append(out, r)
		}
	}
	worker.WriteJSON(w, http.StatusOK, out)
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
			for _, lane := range reader.Fresh() {
				if lane.Source.Partition != int32(partition) {
					continue
				}
				w.Header().Set("Content-Type", "application/x-ndjson")
				buffered := bufio.NewWriterSize(w, 64<<10)
				enc := json.NewEncoder(buffered)
				err := reader.StatesAt(r.Context(), lane, at, func(line projection.StateLine) error { return enc.Encode(line) })
				if err == nil {
					err = errors.Join(enc.Encode(projection.StateLine{End: true}), buffered.Flush())
				}
				if err != nil {
					v.w.Log.Warn("states could not be handed out; whoever asked sees that the end is missing", "projection", wanted.name, "version", number, "partition", partition, "err", err)
				}
				return
			}
		}
	}
	http.Error(w, "this worker does not have it", http.StatusMisdirectedRequest)
}
