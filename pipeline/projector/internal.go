package projector

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"

	"millrace/pipeline/keyring"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/server"
)

// The API for other workers and for commands. It is not a part of the API for users.
//
//	GET /internal/v1/versions                              the versions that run here: []RunningVersion
//	GET /internal/v1/versions/{name}/{version}/{partition}?at=
//	                                                       the states of a partition at an offset: lines of reader.StateLine
//	GET /internal/v1/scan/{name}/{version}?after=          all aggregates of this worker, by id: lines of reader.ScanLine
//	GET /internal/v1/positions/{name}/{version}            the positions of its partitions: []query.Position
//	GET /internal/v1/outcome/{name}/{version}?event=&wait= its outcome of an event: reader.OutcomePart
//	GET /internal/v1/events/{name}/{version}?page=         its part of a list of events: reader.EventsPart
//	GET /internal/v1/blocked/{name}/{version}?page=        its part of the blocked aggregates: reader.BlockedPart
//	POST /internal/v1/release/{name}/{version}?id=&skip=   releases an aggregate that is blocked here: reader.ReleasedPart
//	GET /internal/v1/feed/{name}/{version}?start=          follows its partitions: lines of reader.PeerChanges
//	GET /internal/v1/states/{name}/{id}                    the number of states of an aggregate here, of all versions
//	GET /internal/v1/forgotten/{name}/{id}                 answers when nothing is left of an aggregate: forgotten
//
// Errors are problems of RFC 9457. Workers of earlier releases answer with plain text.

// RunningVersion is a version that runs on a worker.
type RunningVersion struct {
	Projection string          `json:"projection"`
	Version    int             `json:"version"`
	Offsets    map[int32]int64 `json:"offsets"` // next offset to fold, by partition
	Blocked    map[int32]int64 `json:"blocked"` // number of blocked aggregates, by partition
	At         string          `json:"-"`       // address of the worker
}

// internalAPI answers other workers and commands. Its fields are immutable.
type internalAPI struct {
	roster  *roster
	replica bool
	keys    *keyring.Ring // nil if nothing is encrypted
	log     *slog.Logger
}

// register adds the routes.
func (a *internalAPI) register(mux interface{ Handle(string, http.Handler) }) {
	mux.Handle("GET /internal/v1/versions", http.HandlerFunc(a.serveVersions))
	mux.Handle("GET /internal/v1/versions/{name}/{version}/{partition}", http.HandlerFunc(a.serveStates))
	mux.Handle("GET /internal/v1/scan/{name}/{version}", a.serve((*reader.Reader).ServeScan))
	mux.Handle("GET /internal/v1/positions/{name}/{version}", a.serve((*reader.Reader).ServePositions))
	mux.Handle("GET /internal/v1/outcome/{name}/{version}", a.serve((*reader.Reader).ServeOutcome))
	mux.Handle("GET /internal/v1/events/{name}/{version}", a.serve((*reader.Reader).ServeEvents))
	mux.Handle("GET /internal/v1/blocked/{name}/{version}", a.serve((*reader.Reader).ServeBlocked))
	mux.Handle("POST /internal/v1/release/{name}/{version}", a.serve((*reader.Reader).ServeRelease))
	mux.Handle("GET /internal/v1/feed/{name}/{version}", a.serve((*reader.Reader).ServeFeed))
	mux.Handle("GET /internal/v1/states/{name}/{id}", http.HandlerFunc(a.serveCount))
	mux.Handle("GET /internal/v1/forgotten/{name}/{id}", http.HandlerFunc(a.serveForgotten))
}

// serve has the reader of a version answer a request. A replica answers none: workers
// ask the owners.
func (a *internalAPI) serve(answer func(r *reader.Reader, w http.ResponseWriter, in *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		number, err := strconv.Atoi(in.PathValue("version"))
		if err != nil {
			server.WriteProblem(w, http.StatusBadRequest, "%v", err)
			return
		}
		r := a.roster.reader(in.PathValue("name"), number)
		if r == nil || a.replica {
			server.WriteProblem(w, http.StatusMisdirectedRequest, "%v", reader.ErrNotHere)
			return
		}
		if err := answer(r, w, in); err != nil {
			server.WriteProblem(w, http.StatusInternalServerError, "%v", err)
		}
	})
}

// serveVersions answers with the versions that run here. A replica has none, because
// commands compare the owners.
func (a *internalAPI) serveVersions(w http.ResponseWriter, _ *http.Request) {
	out := []RunningVersion{}
	if !a.replica {
		for _, l := range a.roster.all() {
			for i, v := range l.wanted {
				out = append(out, RunningVersion{Projection: v.name, Version: v.record.Version, Offsets: l.readers[i].Offsets(), Blocked: l.readers[i].CountBlocked()})
			}
		}
	}
	server.WriteJSON(w, http.StatusOK, out)
}

// serveStates answers with the states of a partition at an offset, as lines of
// [reader.StateLine]. If that fails, the last line is missing.
func (a *internalAPI) serveStates(w http.ResponseWriter, in *http.Request) {
	name := in.PathValue("name")
	number, err1 := strconv.Atoi(in.PathValue("version"))
	partition, err2 := strconv.ParseInt(in.PathValue("partition"), 10, 32)
	at, err3 := strconv.ParseInt(in.URL.Query().Get("at"), 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		server.WriteProblem(w, http.StatusBadRequest, "%v", err)
		return
	}
	r := a.roster.reader(name, number)
	if r == nil {
		server.WriteProblem(w, http.StatusMisdirectedRequest, "%v", reader.ErrNotHere)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	buffered := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buffered)
	err := r.StatesAt(in.Context(), int32(partition), at, func(line reader.StateLine) error { return enc.Encode(line) })
	if errors.Is(err, reader.ErrNotHere) {
		server.WriteProblem(w, http.StatusMisdirectedRequest, "%v", err)
		return
	}
	if errors.Is(err, query.ErrFilling) {
		w.Header().Del("Content-Type")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	if err == nil {
		err = errors.Join(enc.Encode(reader.StateLine{End: true}), buffered.Flush())
	}
	if err != nil {
		a.log.Warn("cannot hand out all states; the client sees that the end is missing", "projection", name, "version", number, "partition", partition, "err", err)
	}
}

// serveCount answers with the number of states of an aggregate on this worker.
func (a *internalAPI) serveCount(w http.ResponseWriter, in *http.Request) {
	n := 0
	for _, l := range a.roster.all() {
		for _, set := range l.sets() {
			for _, p := range set.Projections() {
				if p.Name() != in.PathValue("name") {
					continue
				}
				one, err := set.CountStates(p, in.PathValue("id"))
				if err != nil {
					server.WriteProblem(w, http.StatusInternalServerError, "%v", err)
					return
				}
				n += one
			}
		}
	}
	server.WriteJSON(w, http.StatusOK, n)
}

// forgotten is the answer of a worker that has erased an aggregate.
type forgotten struct {
	Versions   []string `json:"versions"`
	Partitions []int32  `json:"partitions"` // of this worker, of any version
}

// errNotHeard is the error of a worker that does not know yet that an aggregate must be
// erased.
var errNotHeard = errors.New("this worker has not heard of it yet")

// serveForgotten answers when nothing is left of an aggregate on this worker's disk.
func (a *internalAPI) serveForgotten(w http.ResponseWriter, in *http.Request) {
	out := forgotten{Versions: []string{}, Partitions: []int32{}}
	for _, l := range a.roster.all() {
		if err := a.purge(in.Context(), l, in.PathValue("name"), in.PathValue("id"), &out); err != nil {
			status := http.StatusInternalServerError
			if errors.Is(err, errNotHeard) {
				status = http.StatusConflict
			}
			server.WriteProblem(w, status, "%v", err)
			return
		}
	}
	server.WriteJSON(w, http.StatusOK, out)
}

// purge erases an aggregate from all versions of a projection in a loop, and from the
// disk.
func (a *internalAPI) purge(ctx context.Context, l *groupLoop, name, id string, out *forgotten) error {
	subjects := a.keys != nil && slices.ContainsFunc(l.wanted, func(v wantedVersion) bool { return v.name == name && v.projection.Subjects })
	for _, set := range l.sets() {
		for _, p := range set.Projections() {
			if p.Name() != name {
				continue
			}
			if !p.Fence.Has([]byte(id)) || subjects && !a.keys.Forgotten(id) {
				return errNotHeard
			}
			if err := l.erase(ctx); err != nil {
				return err
			}
			partitions, err := set.Purge(p, id)
			if err != nil {
				return err
			}
			out.Versions = append(out.Versions, p.Label())
			out.Partitions = append(out.Partitions, partitions...)
		}
	}
	return nil
}
