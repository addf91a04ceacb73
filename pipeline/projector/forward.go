package projector

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/access"
	"millrace/pipeline/projector/reader"
	"millrace/pipeline/server"
	"millrace/pipeline/server/dial"
)

// Any worker answers any question: what it does not have, it gets from the worker that
// has it. A request about one aggregate is forwarded; lists are merged from all workers
// (clusterReader). A worker does not forward a forwarded request, which could go round
// in circles.

// forwardedBy is the header of a forwarded request with the instance of the worker that
// forwarded it.
const forwardedBy = "Millrace-Forwarded-By"

// forwardWait is how long a question waits for a partition that moves from one worker to
// another.
const forwardWait = 5 * time.Second

// forwardTimeout is how long another worker gets to begin an answer, in addition to the
// wait that the question asks for.
const forwardTimeout = 10 * time.Second

// forwarder sends a question to another worker if this one cannot answer it. Its fields
// are immutable.
type forwarder struct {
	peers  *peers
	roster *roster
	ready  func() error // nil if this worker is ready
}

// wrap returns a handler that forwards the questions that next cannot answer.
func (f *forwarder) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(forwardedBy) != "" || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		f.serve(next, w, r)
	})
}

// serve answers from here or from another worker. It waits for partitions that move
// from one worker to another.
func (f *forwarder) serve(next http.Handler, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), forwardWait)
	defer cancel()
	for {
		_, changed := f.peers.control.Now()
		if f.askOwnerFirst(w, r) {
			return
		}
		p := &probe{ResponseWriter: w, header: http.Header{}}
		next.ServeHTTP(p, r)
		if !p.held {
			return
		}
		if p.status == http.StatusNotFound && f.peers.replica && f.ready() == nil {
			p.release(w) // this worker has everything
			return
		}
		done, missing := f.sendAnywhere(w, r, p)
		if done {
			return
		}
		if missing != nil {
			missing.release(w)
			return
		}
		t := time.NewTimer(forwardRetry)
		select {
		case <-t.C:
		case <-changed:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			w.Header().Set("Retry-After", "1")
			p.release(w)
			return
		}
	}
}

// askOwnerFirst asks the owner of an aggregate during an upgrade, when this worker follows
// the partition because its owner is of an earlier release. The owner may have answered from
// a later offset before, and answers must not go back. It returns false if no owner answers:
// then this worker does.
func (f *forwarder) askOwnerFirst(w http.ResponseWriter, r *http.Request) bool {
	one, id := f.asked(r)
	if one == nil || f.peers.replica || !f.roster.followsLive(one) {
		return false
	}
	state, _ := f.peers.control.Now()
	instance, owner, ok := state.Owner(one.Group(), one.Topic(), one.Home(id))
	if !ok || instance == f.peers.instance {
		return false
	}
	done, missing := f.send(w, r, owner.Address)
	if missing != nil {
		missing.release(w)
		return true
	}
	return done
}

// asked returns the reader of the projection that a question about one aggregate names, and
// the aggregate's id; nil if the question is another.
func (f *forwarder) asked(r *http.Request) (one *reader.Reader, id string) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/projections/")
	parts := strings.Split(path, "/")
	if !ok || len(parts) < 2 {
		return nil, ""
	}
	return f.roster.liveReader(parts[0]), parts[1]
}

// forwardRetry is the delay before a question whose partition is with no worker is
// tried again.
const forwardRetry = 50 * time.Millisecond

// sendAnywhere sends a question to the workers that may answer it, until one does
// (done). here is the answer of this worker. missing is the answer of the owner that the
// aggregate does not exist: then no other worker has it, unless aggregates may be in any
// partition. It is nil if the owner did not answer.
func (f *forwarder) sendAnywhere(w http.ResponseWriter, r *http.Request, here *probe) (done bool, missing *probe) {
	elsewhere := here.status == http.StatusMisdirectedRequest
	if !elsewhere {
		missing = here
	}
	for _, addr := range f.candidates(r, elsewhere) {
		done, absent := f.send(w, r, addr)
		if done {
			return true, nil
		}
		if missing == nil {
			missing = absent
		}
	}
	return false, missing
}

// candidates returns the addresses of the workers that may answer a question, the
// likeliest first. home reports that the partition of the aggregate is not with this
// worker.
func (f *forwarder) candidates(r *http.Request, home bool) (out []string) {
	state, _ := f.peers.control.Now()
	if one, id := f.asked(r); home && one != nil {
		if instance, w, ok := state.Owner(one.Group(), one.Topic(), one.Home(id)); ok && instance != f.peers.instance {
			out = append(out, w.Address)
		}
	}
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		if addr := state.Workers[instance].Address; instance != f.peers.instance && len(state.Workers[instance].Partitions) > 0 && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// maxMissing bounds an answer that something does not exist, in bytes.
const maxMissing = 64 << 10

// send sends a question to another worker and passes its answer on. done is false if the
// other worker has no answer; then nothing was passed on. missing is its answer that the
// aggregate does not exist, if it gave that.
func (f *forwarder) send(w http.ResponseWriter, r *http.Request, addr string) (done bool, missing *probe) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	req := r.Clone(ctx)
	req.RequestURI, req.URL.Scheme, req.URL.Host, req.Host = "", f.peers.caller.Scheme(), addr, addr
	req.Header.Set(forwardedBy, f.peers.instance)
	// The other worker may hang. The request determines how long it may wait.
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait")) // the other worker reports a bad value
	late := time.AfterFunc(wait+forwardTimeout, cancel)
	resp, err := f.peers.transport.RoundTrip(req)
	if err != nil {
		return false, nil
	}
	defer resp.Body.Close()
	if !late.Stop() {
		return false, nil
	}
	switch resp.StatusCode {
	case http.StatusMisdirectedRequest, http.StatusServiceUnavailable:
		return false, nil
	case http.StatusUnauthorized, http.StatusForbidden: // the caller's role was checked here
		server.WriteProblem(w, http.StatusBadGateway, "the worker at %s, which has the answer, refuses this worker: %v; give all workers a --token-file with the role %s", addr, dial.StatusError(resp), access.Worker)
		return true, nil
	case http.StatusNotFound:
		missing = &probe{header: resp.Header, status: resp.StatusCode, held: true}
		if _, err := io.Copy(&missing.body, io.LimitReader(resp.Body, maxMissing)); err != nil {
			return false, nil
		}
		return false, missing
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	out := io.Writer(w)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		out = flushing{w}
	}
	_, _ = io.Copy(out, resp.Body) // the client is gone, or sees that the end is missing
	return true, nil
}

// flushing passes on each piece immediately.
type flushing struct{ http.ResponseWriter }

// Write implements [io.Writer].
func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// probe holds an answer back if its status means that the worker does not have the
// aggregate, and passes on others.
type probe struct {
	http.ResponseWriter
	header http.Header // of an answer that is held
	status int
	held   bool
	body   bytes.Buffer
}

// Header implements [http.ResponseWriter].
func (p *probe) Header() http.Header {
	if p.status != 0 && !p.held {
		return p.ResponseWriter.Header()
	}
	return p.header
}

// WriteHeader implements [http.ResponseWriter].
func (p *probe) WriteHeader(status int) {
	if p.status != 0 {
		return
	}
	p.status = status
	if p.held = status == http.StatusMisdirectedRequest || status == http.StatusNotFound; !p.held {
		maps.Copy(p.ResponseWriter.Header(), p.header)
		p.ResponseWriter.WriteHeader(status)
	}
}

// Write implements [http.ResponseWriter].
func (p *probe) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	if p.held {
		return p.body.Write(b)
	}
	return p.ResponseWriter.Write(b)
}

// Flush implements [http.Flusher].
func (p *probe) Flush() {
	p.WriteHeader(http.StatusOK)
	if !p.held {
		_ = http.NewResponseController(p.ResponseWriter).Flush() // the next write reports the error
	}
}

// release passes on the answer that was held.
func (p *probe) release(w http.ResponseWriter) {
	maps.Copy(w.Header(), p.header)
	w.WriteHeader(p.status)
	_, _ = w.Write(p.body.Bytes()) // on an error, the client is gone
}
