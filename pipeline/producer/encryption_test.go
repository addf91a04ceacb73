package producer

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
	"millrace/pipeline/keyring/keyringtest"
)

// newEncryptedSending returns a sender of people with encrypted fields.
func newEncryptedSending(t testing.TB, w keyring.RecordWriter, keys *keyring.Ring) *sending {
	t.Helper()
	s := newSending(t, w)
	s.encoder, s.patience = keyringtest.Encoder(t, keys), time.Minute
	s.metrics = newProducerMetrics(prometheus.NewRegistry(), s.encoder.Types())
	return s
}

// valueWriter keeps the values instead of writing them.
type valueWriter struct{ values [][]byte }

func (w *valueWriter) Write(_ context.Context, r *pipeline.Record, done func(error)) {
	w.values = append(w.values, bytes.Clone(r.Value))
	done(nil)
}

func (*valueWriter) Flush(context.Context) error { return nil }

func TestSenderEncryptsAndRejectsForgottenSubjects(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	out := b.Writer()
	k := b.Ring(keyringtest.KEKs(t, "a"), out)
	if err := k.Ensure(t.Context(), []string{"gone"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Destroy(out, "gone"); err != nil {
		t.Fatal(err)
	}
	w := &valueWriter{}
	s := newEncryptedSending(t, w, k)
	text := keyringtest.Person(`"u-1"`, "anna@example.com") + "\n" + keyringtest.Person(`"gone"`, "lost@example.com") + keyringtest.Person(`null`, "nobody@example.com") +
		keyringtest.Person(`"u-2"`, "bert@example.com") + `{"data":{"id":"u-3","email":5551234,"mail":""}}` + "\n" + keyringtest.Person(`"u-1"`, strings.Repeat("x", 800_000))
	if got := s.text(t.Context(), text); got.err != nil || got.total != 2 || got.rejected != 4 {
		t.Fatalf("sent %d, rejected %d, %v\n%s", got.total, got.rejected, got.err, &s.console)
	}
	reported := s.console.String()
	harness.WantLines(t, reported, ":3: data.id: the subject was forgotten", ":4: data.id: the subject of encrypted fields", ":6: data.email: expected string", ":7: too large")
	for _, secret := range []string{"@example.com", "5551234", "xxx"} {
		if strings.Contains(reported, secret) {
			t.Errorf("%s is reported:\n%s", secret, reported)
		}
	}
	plan := keyringtest.People(t, 1)
	schema := plan.Topics[0].Types[0]
	show, err := k.NewShower(plan.Encryption, schema)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"anna@example.com", "bert@example.com"} {
		if bytes.Contains(w.values[i], []byte(want)) {
			t.Errorf("%q is not encrypted", w.values[i])
		}
		ref, body, err := codec.Unframe(&pipeline.Record{Value: w.values[i]})
		if err != nil || ref.ID != keyringtest.SchemaID {
			t.Fatal(ref, err)
		}
		shown, err := show(schema, body)
		if err != nil || !bytes.Contains(shown.Body, []byte(want)) || len(shown.Hidden) > 0 {
			t.Errorf("shown as %q, hidden %v, %v", shown.Body, shown.Hidden, err)
		}
	}
}

func TestNothingIsSentWithoutKeys(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	k := b.Ring(keyringtest.KEKs(t, "a"), &keyringtest.FaultyWriter{Writer: b.Writer(), Fail: func(*pipeline.Record) bool { return true }})
	w := &valueWriter{}
	out := newEncryptedSending(t, w, k).text(t.Context(), keyringtest.Person(`"u-1"`, "anna@example.com"))
	if !errors.Is(out.err, keyringtest.ErrFault) || len(w.values) > 0 {
		t.Errorf("%v; written: %q", out.err, w.values)
	}
	answer := post(t, newIntakeWith(keyringtest.Encoder(t, k), w), keyringtest.Person(`"u-1"`, "anna@example.com"), asJSON)
	if answer.Code != http.StatusServiceUnavailable || strings.Contains(answer.Body.String(), "anna") || len(w.values) > 0 {
		t.Errorf("%d %s; written: %q", answer.Code, answer.Body, w.values)
	}
}

func TestIntakeRefusesForgottenSubjects(t *testing.T) {
	b := keyringtest.NewBox(t, 1)
	out := b.Writer()
	k := b.Ring(keyringtest.KEKs(t, "a"), out)
	if _, err := b.Destroy(out, "gone"); err != nil {
		t.Fatal(err)
	}
	w := &valueWriter{}
	both := "[" + keyringtest.Person(`"u-1"`, "anna@example.com") + "," + keyringtest.Person(`"gone"`, "lost@example.com") + "]"
	answer := post(t, newIntakeWith(keyringtest.Encoder(t, k), w), both, asJSON)
	if answer.Code != http.StatusBadRequest || !strings.Contains(answer.Body.String(), `{"event":1,"field":"data.id","detail":"the subject was forgotten`) || len(w.values) > 0 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
}

// BenchmarkEncryptedSender is BenchmarkSender for an event with two encrypted
// fields, whose subject has a key.
func BenchmarkEncryptedSender(b *testing.B) {
	box := keyringtest.NewBox(b, 1)
	k := box.Ring(keyringtest.KEKs(b, "a"), box.Writer())
	if err := k.Ensure(b.Context(), []string{"u-1"}); err != nil {
		b.Fatal(err)
	}
	s := newEncryptedSending(b, dryWriter{}, k)
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
