package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/seal"
)

const testKeyTopic = "people.keys"

// keyBox is a broker with a topic of keys.
type keyBox struct {
	t   *testing.T
	cfg kafka.Config
}

func newKeyBox(t *testing.T, partitions int) *keyBox {
	t.Helper()
	box := newSandbox(t)
	b := &keyBox{t, kafka.Config{Brokers: box.Brokers(), ClientID: "test"}}
	if _, err := kafka.EnsureTopics(t.Context(), b.cfg, []kafka.TopicSpec{{Name: testKeyTopic, Partitions: partitions, Config: map[string]string{"cleanup.policy": "compact"}}}, true); err != nil {
		t.Fatal(err)
	}
	return b
}

// keyring returns one that follows the topic, with a writer of its own.
func (b *keyBox) keyring(partitions int, keks *seal.KEKs) *keyring {
	b.t.Helper()
	out, err := kafka.NewWriter(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	k := newKeyring(b.cfg, testKeyTopic, partitions, keks, time.Now, slog.New(slog.NewTextHandler(b.t.Output(), nil)), prometheus.NewRegistry())
	k.writer = out
	ctx, stop := context.WithCancel(context.WithoutCancel(b.t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := k.run(ctx); err != nil {
			b.t.Error(err)
		}
	})
	b.t.Cleanup(func() {
		stop()
		running.Wait()
		out.Close()
	})
	if err := k.loaded(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	return k
}

// records returns what stands on the topic under keys of data keys: whether it is
// there, by record key.
func (b *keyBox) records(partitions int) map[string]bool {
	b.t.Helper()
	out := map[string]bool{}
	for p := range int32(partitions) {
		if _, err := kafka.ReadSettled(b.t.Context(), b.cfg, testKeyTopic, p, func(r *pipeline.Record) error {
			if _, isKey, err := seal.SubjectOf(r.Key); err != nil {
				b.t.Error(err)
			} else if isKey {
				out[string(r.Key)] = r.Value != nil
			}
			return nil
		}); err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// Producers that make keys for the same subjects at the same time use the same, and
// so does who comes later.
func TestProducersThatMakeAKeyAtOnceAgree(t *testing.T) {
	const partitions, rounds, racers = 3, 20, 4
	b := newKeyBox(t, partitions)
	keks := testKEKs(t, "a")
	var rings []*keyring
	var gates []*gatedWriter
	for i := range racers {
		rings = append(rings, b.keyring(partitions, keks))
		gates = append(gates, &gatedWriter{recordWriter: rings[i].writer})
		rings[i].writer = gates[i]
	}
	ids := map[string]map[seal.KeyID]bool{}
	for round := range rounds {
		subjects := []string{fmt.Sprintf("u-%d", round), fmt.Sprintf("v/%d", round)}
		var ready, work sync.WaitGroup
		ready.Add(racers)
		for i, k := range rings {
			gates[i].gate = sync.OnceFunc(func() {
				ready.Done()
				ready.Wait() // all have seen that there is no key
			})
			work.Go(func() {
				if err := k.ensure(t.Context(), subjects); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		for _, s := range subjects {
			ids[s] = map[seal.KeyID]bool{}
			for _, k := range rings {
				key, err := k.ring.Current(s)
				if err != nil {
					t.Fatal(err)
				}
				ids[s][key.ID] = true
			}
		}
	}
	late := b.keyring(partitions, keks)
	for s, of := range ids {
		key, err := late.ring.Current(s)
		if err != nil {
			t.Fatal(err)
		}
		if of[key.ID] = true; len(of) != 1 {
			t.Errorf("%s has the keys %v", s, of)
		}
	}
	if n := len(b.records(partitions)); n != racers*len(ids) {
		t.Errorf("%d keys for %d subjects: not all were in each race", n, len(ids))
	}
}

// gatedWriter waits before it writes.
type gatedWriter struct {
	recordWriter
	gate func()
}

func (w *gatedWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	w.gate()
	w.recordWriter.Write(ctx, r, done)
}

// faultyWriter fails one write, after or instead of doing it.
type faultyWriter struct {
	recordWriter
	fail    func(r *pipeline.Record) bool
	applied bool
	failed  int
}

var errFault = errors.New("the connection is gone")

func (w *faultyWriter) Write(ctx context.Context, r *pipeline.Record, done func(error)) {
	if !w.fail(r) {
		w.recordWriter.Write(ctx, r, done)
		return
	}
	w.failed++
	if !w.applied {
		done(errFault)
		return
	}
	w.recordWriter.Write(ctx, r, func(err error) { done(errors.Join(errFault, err)) })
}

func TestAKeyWhoseWriteFailedIsNeverGuessed(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %v", applied), func(t *testing.T) {
			b := newKeyBox(t, 1)
			k, other := b.keyring(1, testKEKs(t, "a")), b.keyring(1, testKEKs(t, "a"))
			real := k.writer
			w := &faultyWriter{recordWriter: real, applied: applied}
			w.fail = func(*pipeline.Record) bool { return w.failed == 0 }
			k.writer = w
			if err := k.ensure(t.Context(), []string{"u-1"}); !errors.Is(err, errFault) || !strings.Contains(err.Error(), testKeyTopic) {
				t.Fatalf("the write failed, and ensure says %v", err)
			}
			// Again, by either: there is one key, known to both.
			if err := k.ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			if err := other.ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Fatal(err)
			}
			mine, err := k.ring.Current("u-1")
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := other.ring.Current("u-1")
			if err != nil {
				t.Fatal(err)
			}
			if mine.ID != theirs.ID {
				t.Errorf("one uses %s, the other %s", mine.ID, theirs.ID)
			}
			if late, err := b.keyring(1, testKEKs(t, "a")).ring.Current("u-1"); err != nil || late.ID != mine.ID {
				t.Errorf("who comes later has %v, %v", late, err)
			}
		})
	}
}

func TestAKeyThatIsNotReadBackIsNotUsed(t *testing.T) {
	b := newKeyBox(t, 1)
	k := b.keyring(1, testKEKs(t, "a"))
	silent := newKeyring(b.cfg, testKeyTopic, 1, testKEKs(t, "a"), time.Now, k.log, prometheus.NewRegistry())
	silent.writer = k.writer // and nobody runs it
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errNoProgress)
	defer cancel()
	if err := silent.ensure(ctx, []string{"u-1"}); !errors.Is(err, errNoProgress) {
		t.Errorf("%v", err)
	}
	if err := silent.loaded(ctx); !errors.Is(err, errNoProgress) {
		t.Errorf("%v", err)
	}
}

// A subject is forgotten although one of the writes fails, once or for all: the
// command says so, and when it is run again it does the rest.
func TestDestroyingKeysFailsAndIsDoneAgain(t *testing.T) {
	mark := func(r *pipeline.Record) bool { return strings.HasPrefix(string(r.Key), "erased/") }
	null := func(r *pipeline.Record) bool { return !mark(r) }
	for name, c := range map[string]struct {
		fail    func(*pipeline.Record) bool
		applied bool
		marked  bool // after the first attempt
		gone    bool
	}{
		"mark, not applied": {mark, false, false, false},
		"mark, applied":     {mark, true, true, false},
		"null, not applied": {null, false, true, false},
		"null, applied":     {null, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newKeyBox(t, 2)
			k := b.keyring(2, testKEKs(t, "a"))
			if err := k.ensure(t.Context(), []string{"u-1", "u-2", "u-3"}); err != nil {
				t.Fatal(err)
			}
			partition := kafka.PartitionOf([]byte("u-1"), 2)
			read := func(f func(*pipeline.Record) error) error {
				_, err := kafka.ReadSettled(t.Context(), b.cfg, testKeyTopic, partition, f)
				return err
			}
			destroy := func(w recordWriter) (int, error) {
				return destroyKeys(t.Context(), w, testKeyTopic, partition, "u-1", testNow, read)
			}
			gone := func() bool {
				for key, there := range b.records(2) {
					if strings.HasSuffix(key, "/u-1") && there {
						return false
					}
				}
				return true
			}
			if _, err := destroy(&faultyWriter{recordWriter: k.writer, fail: c.fail, applied: c.applied}); !errors.Is(err, errFault) || !strings.Contains(err.Error(), "run the command again") {
				t.Fatalf("%v", err)
			}
			late := b.keyring(2, testKEKs(t, "a"))
			if late.ring.Forgotten("u-1") != c.marked || gone() != c.gone {
				t.Errorf("after the fault: marked %v, gone %v", late.ring.Forgotten("u-1"), gone())
			}
			n, err := destroy(k.writer)
			if want := map[bool]int{true: 0, false: 1}[c.gone]; err != nil || n != want {
				t.Fatalf("again: %d keys destroyed, want %d; %v", n, want, err)
			}
			if _, err := b.keyring(2, testKEKs(t, "a")).ring.Current("u-1"); !errors.Is(err, seal.ErrErased) || !gone() {
				t.Errorf("afterwards: %v, gone %v", err, gone())
			}
			for _, s := range []string{"u-2", "u-3"} {
				if _, err := k.ring.Current(s); err != nil {
					t.Errorf("another subject: %v", err)
				}
			}
			// Nobody makes it another.
			if err := k.ensure(t.Context(), []string{"u-1"}); err != nil {
				t.Error(err)
			}
			if n := len(b.records(2)); n != 3 {
				t.Errorf("%d keys were made for 3 subjects", n)
			}
		})
	}
}

// sealedEncoder returns an encoder of people whose data is encrypted.
func sealedEncoder(t testing.TB, k *keyring) *eventEncoder {
	t.Helper()
	plan := personTopology(t, 1)
	e, err := newEventEncoder("people.events", plan.Topics[0].Types, "id", func() string { return testID }, func() time.Time { return testNow })
	if err == nil {
		err = e.encrypt(plan.Encryption)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.types[0].id = 7
	e.keys = k
	return e
}

func person(id, email string) string {
	return fmt.Sprintf(`{"data":{"id":%s,"email":%q,"mail":""}}`+"\n", id, email)
}

// keeper keeps the values of what is written.
type keeper struct{ values [][]byte }

func (w *keeper) Write(_ context.Context, r *pipeline.Record, done func(error)) {
	w.values = append(w.values, bytes.Clone(r.Value))
	done(nil)
}
func (w *keeper) Flush(context.Context) error { return nil }

func TestASenderEncryptsAndRefusesWhoIsForgotten(t *testing.T) {
	b := newKeyBox(t, 1)
	k := b.keyring(1, testKEKs(t, "a"))
	if err := k.ensure(t.Context(), []string{"gone"}); err != nil {
		t.Fatal(err)
	}
	if _, err := destroyKeys(t.Context(), k.writer, testKeyTopic, 0, "gone", testNow, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(t.Context(), b.cfg, testKeyTopic, 0, f)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w := &keeper{}
	s := newSending(t, w)
	s.encoder, s.patience = sealedEncoder(t, k), time.Minute
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.types)
	text := person(`"u-1"`, "anna@example.com") + "\n" + person(`"gone"`, "lost@example.com") + person(`null`, "nobody@example.com") +
		person(`"u-2"`, "bert@example.com") + `{"data":{"id":"u-3","email":5551234,"mail":""}}` + "\n" + person(`"u-1"`, strings.Repeat("x", 800_000))
	out := s.run(t.Context(), readFiles(t.Context(), []string{"-"}, strings.NewReader(text)))
	if out.err != nil || out.total != 2 || out.rejected != 4 {
		t.Fatalf("sent %d, rejected %d, %v\n%s", out.total, out.rejected, out.err, &s.console)
	}
	told := s.console.String()
	for _, want := range []string{":3: data.id: the subject was forgotten", ":4: data.id: the subject of encrypted fields", ":6: data.email: expected string", ":7: too large"} {
		if !strings.Contains(told, want) {
			t.Errorf("it is not told that %s:\n%s", want, told)
		}
	}
	for _, secret := range []string{"@example.com", "5551234", "xxx"} {
		if strings.Contains(told, secret) {
			t.Errorf("%s is told:\n%s", secret, told)
		}
	}
	f := s.encoder.types[0].sealed
	for i, want := range []string{"anna@example.com", "bert@example.com"} {
		if bytes.Contains(w.values[i], []byte(want)) {
			t.Errorf("%q is not encrypted", w.values[i])
		}
		ref, body, err := codec.Unframe(&pipeline.Record{Value: w.values[i]})
		if err != nil || ref.ID != 7 {
			t.Fatal(ref, err)
		}
		if shown, hidden := shownJSON(t, f, k.ring, body); !strings.Contains(shown, want) || len(hidden) > 0 {
			t.Errorf("%s, %v", shown, hidden)
		}
	}
}

func TestASenderWithoutKeysSendsNothing(t *testing.T) {
	b := newKeyBox(t, 1)
	k := b.keyring(1, testKEKs(t, "a"))
	k.writer = &faultyWriter{recordWriter: k.writer, fail: func(*pipeline.Record) bool { return true }}
	w := &keeper{}
	s := newSending(t, w)
	s.encoder, s.patience = sealedEncoder(t, k), time.Minute
	out := s.run(t.Context(), readFiles(t.Context(), []string{"-"}, strings.NewReader(person(`"u-1"`, "anna@example.com"))))
	if !errors.Is(out.err, errFault) || len(w.values) > 0 {
		t.Errorf("%v; written: %q", out.err, w.values)
	}

	in := newIntake(t, w)
	for range cap(in.slots) {
		<-in.slots
		in.slots <- sealedEncoder(t, k)
	}
	answer := post(t, in, person(`"u-1"`, "anna@example.com"), "Content-Type: application/json")
	if answer.Code != http.StatusServiceUnavailable || strings.Contains(answer.Body.String(), "anna") || len(w.values) > 0 {
		t.Errorf("%d %s; written: %q", answer.Code, answer.Body, w.values)
	}
}

func TestAnIntakeRefusesWhoIsForgotten(t *testing.T) {
	b := newKeyBox(t, 1)
	k := b.keyring(1, testKEKs(t, "a"))
	mark, err := seal.Erased("gone", testNow)
	if err == nil {
		err = k.ring.Take(mark)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &keeper{}
	in := newIntake(t, w)
	for range cap(in.slots) {
		<-in.slots
		in.slots <- sealedEncoder(t, k)
	}
	in.metrics = newProducerMetrics(prometheus.NewRegistry(), sealedEncoder(t, k).types)
	both := "[" + person(`"u-1"`, "anna@example.com") + "," + person(`"gone"`, "lost@example.com") + "]"
	if answer := post(t, in, both, "Content-Type: application/json"); answer.Code != http.StatusBadRequest || !strings.Contains(answer.Body.String(), `{"event":1,"field":"data.id","detail":"the subject was forgotten`) || len(w.values) > 0 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}

func TestKEKsComeFromAFileOrTheEnvironment(t *testing.T) {
	line := "a " + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + "\n"
	file := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file, env string
		there     bool
		err       string
	}{
		"none":     {},
		"file":     {file: file, there: true},
		"env":      {env: line, there: true},
		"both":     {file: file, env: line, err: "give one"},
		"no file":  {file: file + "x", err: "no such file"},
		"bad file": {file: os.DevNull, err: os.DevNull + ": there is no key in it"},
		"bad env":  {env: "a b", err: "MILLRACE_KEK: line 1"},
	} {
		e := &Env{LookupEnv: func(name string) (string, bool) { return c.env, name == envKEK && c.env != "" }}
		k, err := (&KEKFlags{env: e, file: c.file}).Load()
		if (k != nil) != c.there || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
		if err != nil && exitCode(err) != ExitUsage {
			t.Errorf("%s: %v is no fault of usage", name, err)
		}
	}
}

// BenchmarkEncryptedSender is BenchmarkSender for an event with two encrypted
// fields, of a subject that has a key.
func BenchmarkEncryptedSender(b *testing.B) {
	keks := testKEKs(b, "a")
	s := newSending(b, &fakeWriter{})
	s.writer, s.patience = dryWriter{}, time.Minute
	s.encoder = sealedEncoder(b, &keyring{ring: testRing(b, keks, "u-1"), keks: keks})
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.types)
	line := []byte(person(`"u-1"`, "anna@example.com"))
	batch := &lineBatch{input: "in", data: line, ends: []int{len(line)}}
	b.ReportAllocs()
	for number := 1; b.Loop(); number++ {
		batch.first = number
		if err := s.lines(b.Context(), batch, 0, 1); err != nil {
			b.Fatal(err)
		}
	}
}
