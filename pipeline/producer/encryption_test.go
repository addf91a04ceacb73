package producer

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
	"millrace/pipeline/seal"
)

func TestAKeyThatIsNotReadBackIsNotUsed(t *testing.T) {
	b := keyringtest.NewKeyBox(t, 1)
	k := b.Keyring(1, keyringtest.TestKEKs(t, "a"))
	silent := keyring.New(b.Cfg, keyringtest.TestKeyTopic, 1, keyringtest.TestKEKs(t, "a"), time.Now, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	silent.Writer = k.Writer // and nobody runs it
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errNoProgress)
	defer cancel()
	if err := silent.Ensure(ctx, []string{"u-1"}); !errors.Is(err, errNoProgress) {
		t.Errorf("%v", err)
	}
	if err := silent.Loaded(ctx); !errors.Is(err, errNoProgress) {
		t.Errorf("%v", err)
	}
}

func TestASenderEncryptsAndRefusesWhoIsForgotten(t *testing.T) {
	b := keyringtest.NewKeyBox(t, 1)
	k := b.Keyring(1, keyringtest.TestKEKs(t, "a"))
	if err := k.Ensure(t.Context(), []string{"gone"}); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.DestroyKeys(t.Context(), k.Writer, keyringtest.TestKeyTopic, 0, "gone", harness.Now, func(f func(*pipeline.Record) error) error {
		_, err := kafka.ReadSettled(t.Context(), b.Cfg, keyringtest.TestKeyTopic, 0, f)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w := &keyringtest.Keeper{}
	s := newSending(t, w)
	s.encoder, s.patience = keyringtest.SealedEncoder(t, k), time.Minute
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.Types)
	text := keyringtest.Person(`"u-1"`, "anna@example.com") + "\n" + keyringtest.Person(`"gone"`, "lost@example.com") + keyringtest.Person(`null`, "nobody@example.com") +
		keyringtest.Person(`"u-2"`, "bert@example.com") + `{"data":{"id":"u-3","email":5551234,"mail":""}}` + "\n" + keyringtest.Person(`"u-1"`, strings.Repeat("x", 800_000))
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
	f := s.encoder.Types[0].Sealed
	for i, want := range []string{"anna@example.com", "bert@example.com"} {
		if bytes.Contains(w.Values[i], []byte(want)) {
			t.Errorf("%q is not encrypted", w.Values[i])
		}
		ref, body, err := codec.Unframe(&pipeline.Record{Value: w.Values[i]})
		if err != nil || ref.ID != 7 {
			t.Fatal(ref, err)
		}
		if shown, hidden := keyringtest.ShownJSON(t, f, k.Cache, body); !strings.Contains(shown, want) || len(hidden) > 0 {
			t.Errorf("%s, %v", shown, hidden)
		}
	}
}

func TestASenderWithoutKeysSendsNothing(t *testing.T) {
	b := keyringtest.NewKeyBox(t, 1)
	k := b.Keyring(1, keyringtest.TestKEKs(t, "a"))
	k.Writer = &keyringtest.FaultyWriter{RecordWriter: k.Writer, Fail: func(*pipeline.Record) bool { return true }}
	w := &keyringtest.Keeper{}
	s := newSending(t, w)
	s.encoder, s.patience = keyringtest.SealedEncoder(t, k), time.Minute
	out := s.run(t.Context(), readFiles(t.Context(), []string{"-"}, strings.NewReader(keyringtest.Person(`"u-1"`, "anna@example.com"))))
	if !errors.Is(out.err, keyringtest.ErrFault) || len(w.Values) > 0 {
		t.Errorf("%v; written: %q", out.err, w.Values)
	}

	in := newIntake(t, w)
	for range cap(in.slots) {
		<-in.slots
		in.slots <- keyringtest.SealedEncoder(t, k)
	}
	answer := post(t, in, keyringtest.Person(`"u-1"`, "anna@example.com"), "Content-Type: application/json")
	if answer.Code != http.StatusServiceUnavailable || strings.Contains(answer.Body.String(), "anna") || len(w.Values) > 0 {
		t.Errorf("%d %s; written: %q", answer.Code, answer.Body, w.Values)
	}
}

func TestAnIntakeRefusesWhoIsForgotten(t *testing.T) {
	b := keyringtest.NewKeyBox(t, 1)
	k := b.Keyring(1, keyringtest.TestKEKs(t, "a"))
	mark, err := seal.Erased("gone", harness.Now)
	if err == nil {
		err = k.Cache.Take(mark)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &keyringtest.Keeper{}
	in := newIntake(t, w)
	for range cap(in.slots) {
		<-in.slots
		in.slots <- keyringtest.SealedEncoder(t, k)
	}
	in.metrics = newProducerMetrics(prometheus.NewRegistry(), keyringtest.SealedEncoder(t, k).Types)
	both := "[" + keyringtest.Person(`"u-1"`, "anna@example.com") + "," + keyringtest.Person(`"gone"`, "lost@example.com") + "]"
	if answer := post(t, in, both, "Content-Type: application/json"); answer.Code != http.StatusBadRequest || !strings.Contains(answer.Body.String(), `{"event":1,"field":"data.id","detail":"the subject was forgotten`) || len(w.Values) > 0 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}

// BenchmarkEncryptedSender is BenchmarkSender for an event with two encrypted
// fields, of a subject that has a key.
func BenchmarkEncryptedSender(b *testing.B) {
	keks := keyringtest.TestKEKs(b, "a")
	s := newSending(b, &fakeWriter{})
	s.writer, s.patience = dryWriter{}, time.Minute
	s.encoder = keyringtest.SealedEncoder(b, &keyring.Ring{Cache: keyringtest.TestRing(b, keks, "u-1"), KEKs: keks})
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.Types)
	line := []byte(keyringtest.Person(`"u-1"`, "anna@example.com"))
	batch := &lineBatch{input: "in", data: line, ends: []int{len(line)}}
	b.ReportAllocs()
	for number := 1; b.Loop(); number++ {
		batch.first = number
		if err := s.lines(b.Context(), batch, 0, 1); err != nil {
			b.Fatal(err)
		}
	}
}
