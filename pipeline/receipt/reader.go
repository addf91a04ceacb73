package receipt

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/rows"
	"millrace/pipeline/topology"
)

// Reader is what pipelines have said, of late, of events that did not come out of
// them. It is in memory, for it is about what somebody has just written: a restart
// reads it again, from so long ago as it is to be known.
//
// It has two generations: when the newer one is as old as receipts are to be known,
// or takes half of the memory, the older one is forgotten and it becomes that.
type Reader struct {
	topics   []*topology.Topic
	span     time.Duration
	most     int // bytes, about
	cfg      kafka.Config
	Ensure   func(ctx context.Context) error // that the topics are there
	now      func() time.Time
	log      *slog.Logger
	rejected *prometheus.CounterVec

	mu            sync.Mutex // guards what follows
	recent, older *rows.Map
	begun         time.Time // receipts since then are in recent
	since         time.Time // no receipt since then was forgotten
	newest        time.Time
	taken         int
	tails         map[string]*kafka.Tail
	words         []said // what the numbers in the maps stand for
	numbers       map[said]uint32
}

// said is what a receipt says of an event.
type said struct {
	outcome   Outcome
	stage     string
	reason    pipeline.Reason
	duplicate bool
}

// receiptsMemory is what receipts may take, about.
const receiptsMemory = 64 << 20

// NewReader returns the receipts on topics; run reads them.
func NewReader(cfg kafka.Config, topics []*topology.Topic, span time.Duration, now func() time.Time, log *slog.Logger, reg prometheus.Registerer) *Reader {
	r := &Reader{
		topics: topics, span: span, most: receiptsMemory, cfg: cfg, Ensure: func(context.Context) error { return nil }, now: now, log: log,
		recent: rows.New(), older: rows.New(), begun: now().Add(-span), since: now().Add(-span), tails: map[string]*kafka.Tail{}, numbers: map[said]uint32{},
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "millrace_receipts_rejected_total", Help: "Records of a topic for receipts that are none."}, []string{"topic"}),
	}
	reg.MustRegister(r.rejected,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_receipts_known", Help: "Receipts of pipelines, of events that did not come out of them, that the projector answers from."}, func() float64 {
			r.mu.Lock()
			defer r.mu.Unlock()
			return float64(r.recent.Len() + r.older.Len())
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "millrace_receipts_lag_records", Help: "Offsets of the topics for receipts that have yet to be read."}, func() float64 {
			lag, _ := r.lag()
			return float64(lag)
		}))
	return r
}

// lag returns how much has yet to be read; ok is false while that is not known.
func (r *Reader) lag() (lag int64, ok bool) {
	r.mu.Lock()
	tails := maps.Clone(r.tails)
	r.mu.Unlock()
	for _, tail := range tails {
		n, known := tail.Lag()
		if !known || tail.Err() != nil {
			return 0, false
		}
		lag += n
	}
	return lag, len(tails) == len(r.topics)
}

// Run reads receipts until the context ends. Nothing that goes wrong with them ends
// a projector: it then says that it does not know.
func (r *Reader) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, topic := range r.topics {
		g.Go(func() error { return r.follow(ctx, topic.Name) })
	}
	return g.Wait()
}

func (r *Reader) follow(ctx context.Context, topic string) error {
	const most = 5 * time.Second
	var tail *kafka.Tail
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, most) {
		if tail == nil {
			tail = kafka.NewTailSince(r.cfg, topic, r.now().Add(-r.span))
			r.mu.Lock()
			r.tails[topic] = tail
			r.mu.Unlock()
		}
		err := r.Ensure(ctx)
		if err == nil {
			err = tail.Run(ctx, r.Take)
		}
		if ctx.Err() != nil {
			return nil
		}
		r.log.Warn("receipts cannot be read for the moment; trying again", "topic", topic, "err", err, "wait", wait)
		if pipeline.ClassOf(err) == pipeline.ClassFatal {
			tail = nil // the topic is another one
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Take reads a record of a receipts topic.
func (r *Reader) Take(in *pipeline.Record) error {
	var got Receipt
	err := json.Unmarshal(in.Value, &got)
	if err == nil && (len(in.Key) == 0 || got.Pipeline == "" || got.Outcome != OutcomeFiltered && got.Outcome != OutcomeDeadLetter) {
		err = errors.New("it names no event, no pipeline or no outcome")
	}
	if err != nil {
		r.rejected.WithLabelValues(in.Topic).Inc()
		r.log.Warn("a record is no receipt", "topic", in.Topic, "partition", in.Partition, "offset", in.Offset, "err", err)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn(in.Time)
	key := receiptKey(string(in.Key), got.Pipeline)
	word := said{got.Outcome, got.Stage, got.Reason, got.Duplicate}
	if have, ok := r.get(key); ok && word.duplicate && !have.duplicate {
		word = have // what became of the first says more
	}
	n, ok := r.numbers[word]
	if !ok {
		n = uint32(len(r.words))
		r.words, r.numbers[word] = append(r.words, word), n
	}
	r.recent.Set(key, binary.AppendUvarint(nil, uint64(n)))
	return nil
}

// turn begins a new generation if it is time for one.
func (r *Reader) turn(at time.Time) {
	if at.After(r.newest) {
		r.newest = at
	}
	// To ask for the memory takes longer than to take in a receipt.
	const ask = 256
	r.taken++
	if r.newest.Sub(r.begun) < r.span && (r.taken%ask != 0 || r.recent.Bytes() < r.most/2) {
		return
	}
	r.older, r.recent = r.recent, rows.New()
	r.since, r.begun = r.begun, r.newest
}

// receiptKey is what a receipt of a pipeline is found under.
func receiptKey(eventID, pipeline string) []byte { return []byte(eventID + "\x00" + pipeline) }

func (r *Reader) get(key []byte) (said, bool) {
	row, ok := r.recent.Get(key)
	if !ok {
		if row, ok = r.older.Get(key); !ok {
			return said{}, false
		}
	}
	n, _ := binary.Uvarint(row)
	return r.words[n], true
}

// of returns what a pipeline has said of an event.
func (r *Reader) of(eventID, pipeline string) (Receipt, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.get(receiptKey(eventID, pipeline))
	return Receipt{Outcome: s.outcome, Pipeline: pipeline, Stage: s.stage, Reason: s.reason, Duplicate: s.duplicate}, ok
}

// Upstream is the pipelines through which an event comes to a topic: those that
// write it, those that write what they read, and so on.
type Upstream struct {
	topic   *topology.Topic
	writers map[*topology.Topic][]*topology.Pipeline
	all     []*topology.Pipeline
	// By pipeline, the topics that none writes from which events come to it.
	roots map[*topology.Pipeline][]*topology.Topic
	known *Reader
}

func NewUpstream(t *topology.Topology, topic *topology.Topic, known *Reader) *Upstream {
	u := &Upstream{topic: topic, writers: map[*topology.Topic][]*topology.Pipeline{}, roots: map[*topology.Pipeline][]*topology.Topic{}, known: known}
	var visit func(to *topology.Topic) (roots []*topology.Topic)
	visit = func(to *topology.Topic) (roots []*topology.Topic) {
		for _, p := range t.Pipelines {
			if !writes(p, to) {
				continue
			}
			u.writers[to] = append(u.writers[to], p)
			if _, seen := u.roots[p]; !seen {
				u.all = append(u.all, p)
				u.roots[p] = visit(p.From)
			}
			roots = append(roots, u.roots[p]...)
		}
		if len(u.writers[to]) == 0 {
			return []*topology.Topic{to}
		}
		return roots
	}
	visit(topic)
	for topic, ps := range u.writers {
		u.writers[topic] = unique(ps) // it may have been visited more than once
	}
	return u
}

func unique[T comparable](all []T) (out []T) {
	for _, one := range all {
		if !slices.Contains(out, one) {
			out = append(out, one)
		}
	}
	return out
}

// writes reports whether a pipeline may write a topic. The topic may be one of
// another reading of the topology.
func writes(p *topology.Pipeline, to *topology.Topic) bool {
	is := func(t *topology.Topic) bool { return t.Name == to.Name }
	return is(p.To) || slices.ContainsFunc(p.Targets, func(targets []*topology.Topic) bool { return slices.ContainsFunc(targets, is) })
}

// Topics returns the topics for receipts of the pipelines from which events
// come to projections.
func Topics(t *topology.Topology) (topics []*topology.Topic) {
	for _, pr := range t.Projections {
		for _, p := range NewUpstream(t, pr.From, nil).all {
			if p.Receipts != nil {
				topics = append(topics, p.Receipts)
			}
		}
	}
	return unique(topics)
}

// Outcome returns what pipelines have said of an event that keeps it from the
// topic. Where there are several ways there, it has to be said on each of them.
func (u *Upstream) Outcome(eventID string) (out query.Outcome, ok bool) {
	if u == nil || len(u.known.topics) == 0 {
		return out, false
	}
	told := map[*topology.Pipeline]Receipt{}
	from := map[*topology.Topic]bool{} // the event may have come from there
	for _, p := range u.all {
		if p.Receipts == nil {
			continue
		}
		if r, ok := u.known.of(eventID, p.Name); ok {
			told[p] = r
			for _, root := range u.roots[p] {
				from[root] = true
			}
		}
	}
	if len(told) == 0 || !u.cut(u.topic, told, from) {
		return out, false
	}
	var texts []string
	for _, p := range u.all {
		r, ok := told[p]
		if !ok {
			continue
		}
		texts = append(texts, r.text())
		out.Open = out.Open || r.Duplicate
		state := query.Filtered
		if r.Outcome == OutcomeDeadLetter {
			state = query.DeadLetter
		}
		if out.State == "" || out.State == query.Filtered && state == query.DeadLetter {
			out.State, out.Pipeline, out.Stage, out.Reason = state, r.Pipeline, r.Stage, string(r.Reason)
		}
	}
	out.Detail = strings.Join(texts, "; ")
	if out.Open {
		out.Detail += ". If the first one was a copy of this event, that one counts, and may be on its way: ask again"
	}
	return out, true
}

// cut reports whether what was told leaves the event no way to a topic.
func (u *Upstream) cut(to *topology.Topic, told map[*topology.Pipeline]Receipt, from map[*topology.Topic]bool) bool {
	ways := 0
	for _, p := range u.writers[to] {
		if !slices.ContainsFunc(u.roots[p], func(root *topology.Topic) bool { return from[root] }) {
			continue // the event was never before it
		}
		ways++
		if _, ok := told[p]; !ok && !u.cut(p.From, told, from) {
			return false
		}
	}
	return ways > 0
}

// Unheard says what may have become of an event that was not seen, "" if no
// pipeline lies before the topic.
func (u *Upstream) Unheard(eventID string) string {
	if u == nil {
		return ""
	}
	var texts []string
	for _, p := range u.all {
		text := "pipeline " + p.Name
		if p.Receipts == nil || len(u.known.topics) == 0 {
			texts = append(texts, text+" may have filtered it, or put it into "+p.DeadLetter.Name)
			continue
		}
		if r, ok := u.known.of(eventID, p.Name); ok {
			texts = append(texts, r.text()+", but it may come another way")
			continue
		}
		lag, ok := u.known.lag()
		u.known.mu.Lock()
		since := u.known.since
		u.known.mu.Unlock()
		text += fmt.Sprintf(" has not said since %s that it filtered it or put it into %s", since.UTC().Format(time.RFC3339), p.DeadLetter.Name)
		if !ok || lag > 0 {
			text += ", as far as its receipts have been read"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}
