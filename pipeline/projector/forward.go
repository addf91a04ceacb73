package projector

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/control"
	"millrace/pipeline/projector/projection"
	"millrace/pipeline/projector/query"
)

// announceTimeout bounds how long a worker that stops tries to say so.
const announceTimeout = 2 * time.Second

// announce keeps what this worker has on the control topic, so that others can
// send it the questions it can answer.
func (v *versions) announce(ctx context.Context) error {
	say := func(ctx context.Context) error {
		return control.Write(ctx, v.w.Kafka, v.control.Topic, time.Now(), control.Record{Key: control.WorkerPrefix + v.w.Flags.Instance, Value: v.has()})
	}
	const most = 5 * time.Second
	for wait := 100 * time.Millisecond; ; {
		var retry <-chan time.Time
		if err := say(ctx); err != nil && ctx.Err() == nil {
			v.w.Log.Warn("other workers cannot be told what this one has; trying again", "err", err, "wait", wait)
			retry, wait = time.After(wait), min(2*wait, most)
		} else {
			wait = 100 * time.Millisecond
		}
		select {
		case <-v.moved:
			continue
		case <-retry:
			continue
		case <-ctx.Done():
		}
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
		defer cancel()
		if err := control.Write(last, v.w.Kafka, v.control.Topic, time.Now(), control.Record{Key: control.WorkerPrefix + v.w.Flags.Instance}); err != nil {
			v.w.Log.Warn("other workers could not be told that this one stops", "err", err)
		}
		return nil
	}
}

// has returns what this worker has.
func (v *versions) has() control.WorkerRecord {
	r := control.WorkerRecord{Format: control.Format, Address: v.address(), Epoch: v.epoch, Time: time.Now().UTC(), Has: map[string]map[string][]int32{}}
	if v.replica {
		r.Replica = true
		return r
	}
	for _, l := range v.all() {
		topics := map[string][]int32{}
		l.ps.Mu.Lock()
		for key := range l.ps.Units {
			topics[key.Topic] = append(topics[key.Topic], key.Partition)
		}
		l.ps.Mu.Unlock()
		for _, ps := range topics {
			slices.Sort(ps)
		}
		r.Has[l.group] = topics
	}
	return r
}

// address returns where others reach this worker: as it was told, else where it
// listens, by the host's name if it listens everywhere.
func (v *versions) address() string {
	if v.advertise != "" {
		return v.advertise
	}
	addr := v.w.HTTP.Addr()
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !net.ParseIP(host).IsUnspecified() {
		return addr
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, port)
	}
	return addr
}

// Any worker answers any question: what it does not have itself it gets from the
// worker that has it. Of an aggregate, the whole request goes there; lists are
// merged from all of them. A worker that was asked by another one never asks a
// third, so that nothing goes round in circles.

// forwardedBy names, in a request from another worker, that worker.
const forwardedBy = "Millrace-Forwarded-By"

// forwardWait is how long a question waits for a partition that is on its way from
// one worker to another.
const forwardWait = 5 * time.Second

// forwardPatience is how long another worker gets to begin an answer, beside what
// a question waits for.
const forwardPatience = 10 * time.Second

// forwarding sends questions on that next cannot answer.
func (v *versions) forwarding(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(forwardedBy) != "" || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), forwardWait)
		defer cancel()
		for {
			_, changed := v.control.Now()
			p := &probe{ResponseWriter: w, header: http.Header{}}
			next.ServeHTTP(p, r)
			if !p.held {
				return
			}
			if p.status == http.StatusNotFound && v.replica && v.ready() == nil {
				p.release(w) // it has everything
				return
			}
			missing := p.status == http.StatusMisdirectedRequest
			for _, addr := range v.candidates(r, missing) {
				switch status, done := v.send(w, r, addr); {
				case done:
					return
				case status == http.StatusNotFound && missing:
					// The owner says so; nobody else knows better, unless
					// aggregates stand anywhere.
					missing = false
				}
			}
			if !missing {
				p.status = http.StatusNotFound
				p.release(w)
				return
			}
			t := time.NewTimer(50 * time.Millisecond)
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
	})
}

// candidates returns who may have what a request asks for, the likeliest first.
func (v *versions) candidates(r *http.Request, home bool) (out []string) {
	self := v.w.Flags.Instance
	state, _ := v.control.Now()
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/projections/"), "/")
	if home && strings.HasPrefix(r.URL.Path, "/v1/projections/") && len(parts) > 1 {
		v.mu.Lock()
		reader := v.live[parts[0]]
		v.mu.Unlock()
		if reader != nil {
			partition := kafka.PartitionOf([]byte(parts[1]), reader.NumPartitions)
			if instance, w, ok := state.Owner(reader.Group, reader.Topic, partition); ok && instance != self {
				out = append(out, w.Address)
			}
		}
	}
	for _, instance := range slices.Sorted(maps.Keys(state.Workers)) {
		if addr := state.Workers[instance].Address; instance != self && len(state.Workers[instance].Has) > 0 && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// send asks another worker and hands on what it answers. done is false if it has
// no answer, of which nothing was handed on.
func (v *versions) send(w http.ResponseWriter, r *http.Request, addr string) (status int, done bool) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	req := r.Clone(ctx)
	req.RequestURI, req.URL.Scheme, req.URL.Host, req.Host = "", "http", addr, addr
	req.Header.Set(forwardedBy, v.w.Flags.Instance)
	// It may be one that hangs. How long it may wait, the request says.
	wait, _ := time.ParseDuration(r.FormValue("wait")) // it says what is wrong with that
	late := time.AfterFunc(wait+forwardPatience, cancel)
	resp, err := v.peers.RoundTrip(req)
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	if !late.Stop() {
		return 0, false
	}
	if resp.StatusCode == http.StatusMisdirectedRequest || resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusServiceUnavailable {
		return resp.StatusCode, false
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	out := io.Writer(w)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		out = flushing{w}
	}
	_, _ = io.Copy(out, resp.Body) // whoever asked has gone, or sees that the end is missing
	return resp.StatusCode, true
}

// flushing hands on each piece at once.
type flushing struct{ http.ResponseWriter }

// Write implements [io.Writer].
func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}

// probe holds an answer back that says that something is not here.
type probe struct {
	http.ResponseWriter
	header http.Header // until it is known
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
		_ = http.NewResponseController(p.ResponseWriter).Flush() // the next write tells
	}
}

// release hands on the answer that was held.
func (p *probe) release(w http.ResponseWriter) {
	maps.Copy(w.Header(), p.header)
	w.WriteHeader(p.status)
	_, _ = w.Write(p.body.Bytes()) // whoever asked has gone
}

// clusterReader answers for the partitions of all workers where a request cannot
// just be sent on.
type clusterReader struct {
	*projection.Reader
	v *versions
	w *wantedVersion
}

// scanLine is a line of what a worker answers who is asked for a scan: first At,
// then aggregates, then End.
type scanLine struct {
	At        []query.Position `json:"at,omitempty"`
	Aggregate *query.Aggregate `json:"aggregate,omitempty"`
	End       bool             `json:"end,omitempty"`
}

// serveScan answers with the aggregates of this worker's partitions.
func (v *versions) serveScan(w http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.PathValue("version"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reader := v.reader(r.PathValue("name"), number)
	if reader == nil {
		http.Error(w, "this worker does not have it", http.StatusMisdirectedRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	failed := enc.Encode(scanLine{At: reader.Partitions()})
	_, err = reader.Scan(r.Context(), r.FormValue("after"), func(a query.Aggregate) bool {
		failed = errors.Join(failed, enc.Encode(scanLine{Aggregate: &a}))
		return failed == nil
	})
	if errors.Join(err, failed) == nil {
		_ = enc.Encode(scanLine{End: true}) // whoever asked sees that it is missing
	}
}

// scanned are the aggregates of one worker, in order.
type scanned struct {
	next func() (query.Aggregate, bool)
	stop func()
	a    query.Aggregate
	ok   bool
	at   []query.Position
	err  error
}

// Scan implements [query.Projection]: it merges the workers.
func (c *clusterReader) Scan(ctx context.Context, after string, f func(query.Aggregate) bool) (at []query.Position, err error) {
	sources := []*scanned{c.local(ctx, after)}
	for _, h := range c.holders() {
		sources = append(sources, c.remote(ctx, h, after))
	}
	defer func() {
		for _, s := range sources {
			s.stop()
			err = errors.Join(err, s.err)
		}
	}()
	for _, s := range sources {
		if s.a, s.ok = s.next(); s.err != nil {
			return nil, s.err
		}
		at = append(at, s.at...)
	}
	if at, err = c.all(at); err != nil {
		return nil, err
	}
	for {
		var first *scanned
		for _, s := range sources {
			if s.ok && (first == nil || s.a.ID < first.a.ID || s.a.ID == first.a.ID && s.a.At.Offset > first.a.At.Offset) {
				first = s
			}
		}
		if first == nil {
			return at, nil
		}
		id := first.a.ID
		if !f(first.a) {
			return at, nil
		}
		for _, s := range sources {
			// A partition that changes hands may be with two of them.
			if s.ok && s.a.ID == id {
				if s.a, s.ok = s.next(); s.err != nil {
					return nil, s.err
				}
			}
		}
	}
}

func (c *clusterReader) local(ctx context.Context, after string) *scanned {
	s := &scanned{at: c.Partitions()}
	s.next, s.stop = iter.Pull(func(yield func(query.Aggregate) bool) {
		_, s.err = c.Reader.Scan(ctx, after, yield)
	})
	return s
}

func (c *clusterReader) remote(ctx context.Context, h holder, after string) *scanned {
	s := &scanned{}
	s.next, s.stop = iter.Pull(func(yield func(query.Aggregate) bool) {
		s.err = c.askHolder(ctx, h, "scan", url.Values{"after": {after}}, func(body io.Reader) error {
			dec := json.NewDecoder(body)
			for {
				var line scanLine
				if err := dec.Decode(&line); err != nil {
					return err
				}
				switch {
				case line.End:
					return nil
				case line.Aggregate == nil:
					s.at = line.At
				case !yield(*line.Aggregate):
					return nil
				}
			}
		})
	})
	return s
}
