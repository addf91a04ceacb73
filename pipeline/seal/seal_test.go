package seal_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"millrace/pipeline/seal"
)

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// kekLine returns a line of a file of key-encryption keys. The key depends only on the
// id.
func kekLine(id string) string {
	key := bytes.Repeat([]byte(id+"-"), 32)[:32]
	return id + " " + base64.StdEncoding.EncodeToString(key) + "\n"
}

func keks(t interface{ Fatal(...any) }, ids ...string) *seal.KEKs {
	text := ""
	for _, id := range ids {
		text += kekLine(id)
	}
	k, err := seal.ParseKEKs(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// newKey adds a new key for a subject to a ring and returns it.
func newKey(t *testing.T, r *seal.Ring, k *seal.KEKs, subject string) *seal.DataKey {
	t.Helper()
	record, err := k.NewKey(subject, now)
	if err == nil {
		err = r.Apply(record)
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.Current(subject)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// decrypt parses and decrypts a text.
func decrypt(key *seal.DataKey, text []byte, at seal.Place) (string, error) {
	s, ok, err := seal.ParseText(text)
	if err != nil || !ok {
		return "", errors.Join(err, fmt.Errorf("ParseText returns ok %v", ok))
	}
	plain, err := key.Open(s, at)
	return string(plain), err
}

func TestCiphertextsAreDecryptedAndHideThePlaintext(t *testing.T) {
	r, k := seal.NewRing(keks(t, "a")), keks(t, "a")
	key := newKey(t, r, k, "u-1")
	at := seal.Place{Subject: "u-1", Field: "email"}
	for _, plain := range []string{"", "x", "anna@example.com", "sealed:", strings.Repeat("long ", 10_000), "\x00\xff"} {
		text, raw := key.AppendText([]byte("before"), []byte(plain), at), key.AppendBytes(nil, []byte(plain), at)
		if len(raw) != len("sealed:")+37+len(plain) {
			t.Errorf("the ciphertext of %.20q has %d bytes", plain, len(raw))
		}
		text = text[len("before"):]
		if again := key.AppendText(nil, []byte(plain), at); bytes.Equal(again, text) {
			t.Error("two ciphertexts of the same plaintext are equal")
		}
		if len(plain) > 3 && (bytes.Contains(text[len("sealed:"):], []byte(plain)) || bytes.Contains(raw[len("sealed:"):], []byte(plain))) {
			t.Errorf("the ciphertext contains the plaintext %.20q", plain)
		}
		if got, err := decrypt(key, text, at); err != nil || got != plain {
			t.Errorf("the text of %.20q is decrypted to %.20q, %v", plain, got, err)
		}
		s, ok, err := seal.ParseBytes(raw)
		if err != nil || !ok || s.KeyID != key.ID {
			t.Fatal(ok, err)
		}
		if got, err := key.Open(s, at); err != nil || string(got) != plain {
			t.Errorf("the bytes of %.20q are decrypted to %.20q, %v", plain, got, err)
		}
	}
}

func TestACiphertextIsBoundToItsKeyAndPlace(t *testing.T) {
	r, k := seal.NewRing(keks(t, "a")), keks(t, "a")
	key, other := newKey(t, r, k, "u-1"), newKey(t, r, k, "u-2")
	at := seal.Place{Subject: "u-1", Field: "email"}
	text := key.AppendText(nil, []byte("anna@example.com"), at)
	for what, place := range map[string]seal.Place{
		"another subject":  {Subject: "u-2", Field: "email"},
		"another field":    {Subject: "u-1", Field: "name"},
		"another boundary": {Subject: "u-1e", Field: "mail"},
		"no place":         {},
	} {
		if got, err := decrypt(key, text, place); !errors.Is(err, seal.ErrTampered) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if got, err := decrypt(other, text, at); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("with another key: %q, %v", got, err)
	}
	// Every changed character is detected.
	for i := range text {
		for _, c := range []byte{'A', 'b', '-', '=', '\n'} {
			changed := bytes.Clone(text)
			if changed[i] == c {
				continue
			}
			changed[i] = c
			s, ok, err := seal.ParseText(changed)
			if !ok && i < len("sealed:") {
				continue // plaintext
			}
			if err == nil {
				_, err = key.Open(s, at)
			}
			if !errors.Is(err, seal.ErrTampered) {
				t.Fatalf("%q at %d: %v", c, i, err)
			}
		}
	}
	for cut := len("sealed:"); cut < len(text); cut++ {
		if s, _, err := seal.ParseText(text[:cut]); err == nil {
			if _, err := key.Open(s, at); err == nil {
				t.Fatalf("the first %d bytes are decrypted", cut)
			}
		}
	}
}

func TestTheNewestKEKWrapsAndAllUnwrap(t *testing.T) {
	at := seal.Place{Subject: "u-1", Field: "email"}
	before := keks(t, "2025")
	first, err := before.NewKey("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	both := keks(t, "2025", "2026")
	second, err := both.NewKey("u-2", now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(second.Value, []byte(`"2026"`)) {
		t.Errorf("the newest KEK did not wrap: %s", second.Value)
	}
	ring := func(k *seal.KEKs) *seal.Ring {
		r := seal.NewRing(k)
		for _, record := range []seal.Record{first, second} {
			if err := r.Apply(record); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	old, err := ring(before).Current("u-1")
	if err != nil {
		t.Fatal(err)
	}
	text := old.AppendText(nil, []byte("anna"), at)
	rotated, err := ring(both).Current("u-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decrypt(rotated, text, at); err != nil || got != "anna" {
		t.Errorf("after the rotation: %q, %v", got, err)
	}
	// Without the KEK of the key, and without any.
	for _, k := range []*seal.KEKs{keks(t, "2026"), nil} {
		if _, err := ring(k).Find("u-1", old.ID); !errors.Is(err, seal.ErrNoKEK) || !strings.Contains(err.Error(), "2025") {
			t.Errorf("without the key-encryption key: %v", err)
		}
	}
	// Another KEK with the same id.
	other, err := seal.ParseKEKs("2025 " + base64.StdEncoding.EncodeToString(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring(other).Current("u-1"); !errors.Is(err, seal.ErrNoKEK) {
		t.Errorf("with another KEK of the same id: %v", err)
	}
	// A key record copied to another subject.
	moved := seal.NewRing(both)
	if err := moved.Apply(seal.Record{Key: bytes.Replace(first.Key, []byte("u-1"), []byte("u-9"), 1), Value: first.Value}); err != nil {
		t.Fatal(err)
	}
	if _, err := moved.Current("u-9"); !errors.Is(err, seal.ErrNoKEK) {
		t.Errorf("a key of another subject: %v", err)
	}
}

func TestParseKEKsNamesTheFaultAndNoKeyMaterial(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 31))
	for text, want := range map[string]string{
		"":                       "there is no key",
		"# nothing\n\n":          "there is no key",
		"2026":                   "line 1",
		"\n2026 " + secret:       "line 2: the key of 2026 is not 32 bytes",
		secret + " 2026":         "is the key before the id?",
		"a b c":                  "line 1: a: want an id and 32 bytes in base64, or an id, the URI of a key of a KMS and the wrapped key in base64",
		"a b c d":                "key in base64, not 4 words",
		"a":                      "key in base64, not 1 word",
		"a gcp-kms://p/k":        "line 1: the wrapped key of a is missing; make the line with: producer new-kek --id a --kms URI",
		"a gcp-kms://p/k " + "x": "line 1: the wrapped key of a is not base64",
		"a gcp-kms://p/k ====":   "line 1: the wrapped key of a is not base64",
		"a kms://p/k AAAA":       "line 1: a: the URI of the key of a KMS begins with aws-kms://arn:, gcp-kms://projects/ or hcvault://HOST:PORT/",
		"a hcvault://u:" + secret + "@h/t/keys/k AAAA": "has no user name, password or query",
		"a hcvault://h/t/keys/k?t=" + secret + " AAAA": "has no user name, password or query",
		kekLine("a") + "a gcp-kms://p/k AAAA":          "line 2: duplicate id a",
		"a gcp-kms://p/k AAAA\na gcp-kms://p/k AAAA\n": "line 2: duplicate id a",
		kekLine("a") + kekLine("a"):                    "line 2: duplicate id a",
	} {
		_, err := seal.ParseKEKs(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestAForgottenSubjectHasNoKeyEvenAfterANewKeyRecord(t *testing.T) {
	k := keks(t, "a")
	r := seal.NewRing(k)
	key := newKey(t, r, k, "u-1")
	mark, err := seal.NewErasure("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	late, err := k.NewKey("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range []seal.Record{mark, {Key: keyOf(t, "u-1", key)}, late} {
		if err := r.Apply(record); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Find("u-1", key.ID); !errors.Is(err, seal.ErrErased) || !strings.Contains(err.Error(), "2026-11-26") {
			t.Errorf("after %s: %v", record.Key, err)
		}
		if _, err := r.Current("u-1"); !errors.Is(err, seal.ErrErased) {
			t.Errorf("after %s: %v", record.Key, err)
		}
		if !r.Erased("u-1") || r.Erased("u-2") {
			t.Error("Forgotten is wrong for u-1 or u-2")
		}
	}
	if _, err := r.Current("u-2"); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("another subject: %v", err)
	}
}

// keyOf returns the record key of a data key.
func keyOf(t *testing.T, subject string, key *seal.DataKey) []byte {
	t.Helper()
	out := fmt.Appendf(nil, "key/%s/%s", key.ID, subject)
	if s, isKey, err := seal.ParseRecordKey(out); err != nil || s != subject || !isKey {
		t.Fatal(s, isKey, err)
	}
	return out
}

// A Ring is the same from the full log as from the compacted log.
func TestARingIsAFunctionOfTheCompactedTopic(t *testing.T) {
	k := keks(t, "a", "b")
	rapid.Check(t, func(rt *rapid.T) {
		subjects := []string{"u-1", "u/2", "key/00/x"}
		var log []seal.Record
		for range rapid.IntRange(0, 12).Draw(rt, "records") {
			subject := rapid.SampledFrom(subjects).Draw(rt, "subject")
			var record seal.Record
			var err error
			switch what := rapid.IntRange(0, 5).Draw(rt, "what"); {
			case what < 3:
				record, err = k.NewKey(subject, now)
			case what == 3 && len(log) > 0: // repeat a record, or destroy a key
				record = rapid.SampledFrom(log).Draw(rt, "again")
				if rapid.Bool().Draw(rt, "null") {
					record.Value = nil
				}
			default:
				record, err = seal.NewErasure(subject, now)
			}
			if err != nil {
				rt.Fatal(err)
			}
			if record.Key != nil {
				log = append(log, record)
			}
		}
		var compacted []seal.Record
		for i, record := range log {
			if _, isMark := seal.MarkOf(record.Key); (record.Value != nil || isMark) && !slices.ContainsFunc(log[i+1:], func(l seal.Record) bool { return bytes.Equal(l.Key, record.Key) }) {
				compacted = append(compacted, record)
			}
		}
		answers := func(log []seal.Record) (out []string) {
			r := seal.NewRing(k)
			for _, record := range log {
				if err := r.Apply(record); err != nil {
					rt.Fatal(err)
				}
			}
			for _, s := range subjects {
				key, err := r.Current(s)
				switch {
				case errors.Is(err, seal.ErrErased): // the time is that of the first mark, which may be gone
					out = append(out, s, "erased")
				case err != nil:
					out = append(out, s, err.Error())
				default:
					out = append(out, s, key.ID.String())
				}
			}
			return out
		}
		if full, short := answers(log), answers(compacted); !slices.Equal(full, short) {
			rt.Fatalf("the full log gives %v, compacted %v", full, short)
		}
	})
}

// No record that follows the mark of a forgotten subject undoes it: not a null, not another
// mark, not a key; and no compaction.
func TestNothingUndoesAnErasure(t *testing.T) {
	k := keks(t, "a")
	rapid.Check(t, func(rt *rapid.T) {
		mark, err1 := seal.NewErasure("u-1", now)
		key, err2 := k.NewKey("u-1", now)
		if err := errors.Join(err1, err2); err != nil {
			rt.Fatal(err)
		}
		log := []seal.Record{key, mark}
		for range rapid.IntRange(0, 8).Draw(rt, "records") {
			late, err := k.NewKey("u-1", now.Add(time.Hour))
			if err != nil {
				rt.Fatal(err)
			}
			value := rapid.SampledFrom([][]byte{nil, {}, []byte("{}"), []byte("?"), mark.Value, []byte(`{"format":1,"time":"0001-01-01T00:00:00Z"}`), late.Value}).Draw(rt, "value")
			log = append(log, seal.Record{Key: rapid.SampledFrom([][]byte{mark.Key, key.Key, late.Key}).Draw(rt, "key"), Value: value})
		}
		var compacted []seal.Record
		for i, record := range log {
			if !slices.ContainsFunc(log[i+1:], func(l seal.Record) bool { return bytes.Equal(l.Key, record.Key) }) {
				compacted = append(compacted, record)
			}
		}
		for name, log := range map[string][]seal.Record{"all records": log, "compacted": compacted} {
			r := seal.NewRing(k)
			for _, record := range log {
				_ = r.Apply(record) // a key that cannot be parsed is an error
			}
			if _, err := r.Current("u-1"); !r.Erased("u-1") || !errors.Is(err, seal.ErrErased) {
				rt.Errorf("%s: erased %v, %v", name, r.Erased("u-1"), err)
			}
		}
	})
}

// Of two keys that were created at the same time, every reader uses the first in the log.
func TestOfTwoKeysTheFirstIsCurrent(t *testing.T) {
	k := keks(t, "a")
	one, err := k.NewKey("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.NewKey("u-1", now)
	if err != nil {
		t.Fatal(err)
	}
	r := seal.NewRing(k)
	var ids []seal.KeyID
	for _, record := range []seal.Record{one, two} {
		if err := r.Apply(record); err != nil {
			t.Fatal(err)
		}
		key, err := r.Current("u-1")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, key.ID)
	}
	if ids[0] != ids[1] {
		t.Errorf("first %s, then %s", ids[0], ids[1])
	}
}

func TestEvictedKeysAreUnwrappedAgain(t *testing.T) {
	k := keks(t, "a")
	r := seal.NewRing(k)
	for i := range 20_000 {
		newKey(t, r, k, fmt.Sprintf("u-%d", i))
	}
	if r.Len() != 20_000 {
		t.Errorf("%d subjects", r.Len())
	}
	for _, i := range []int{0, 1, 19_999} {
		if _, err := r.Current(fmt.Sprintf("u-%d", i)); err != nil {
			t.Error(err)
		}
	}
}

func TestUnreadableRecordsAreErrors(t *testing.T) {
	r := seal.NewRing(keks(t, "a"))
	for _, record := range []seal.Record{
		{Key: []byte("u-1")}, {Key: []byte("key/12/u-1")}, {Key: []byte("key/0123456789ABCDEF/u-1")}, {Key: []byte("key/0123456789abcdef/")}, {Key: []byte("erased/")},
		{[]byte("key/0123456789abcdef/u-1"), []byte("{")}, {[]byte("key/0123456789abcdef/u-1"), []byte(`{"format":2,"kek":"a","wrapped":"AAAA"}`)},
	} {
		if err := r.Apply(record); err == nil {
			t.Errorf("%s: %s was accepted", record.Key, record.Value)
		}
	}
	if r.Len() != 0 {
		t.Errorf("%d subjects", r.Len())
	}
	// An erased record marks its subject whatever its value.
	if err := r.Apply(seal.Record{Key: []byte("erased/u-1"), Value: []byte("?")}); err != nil || !r.Erased("u-1") {
		t.Errorf("an unreadable erased record: %v", err)
	}
}

// FuzzCiphertext checks that random bytes from a topic cause only errors: no panic, no
// other error, and no forged plaintext.
func FuzzCiphertext(f *testing.F) {
	k := keks(f, "a")
	r := seal.NewRing(k)
	record, err := k.NewKey("u-1", now)
	if err == nil {
		err = r.Apply(record)
	}
	if err != nil {
		f.Fatal(err)
	}
	key, err := r.Current("u-1")
	if err != nil {
		f.Fatal(err)
	}
	at := seal.Place{Subject: "u-1", Field: "email"}
	real := map[string]bool{}
	for _, plain := range []string{"", "anna@example.com"} {
		text, raw := key.AppendText(nil, []byte(plain), at), key.AppendBytes(nil, []byte(plain), at)
		real[string(text)], real[string(raw)] = true, true
		f.Add(text)
		f.Add(raw)
		f.Add(text[:len(text)-1])
		f.Add(append(bytes.Clone(text), '='))
	}
	f.Add([]byte("sealed:"))
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, parse := range []func([]byte) (seal.Sealed, bool, error){seal.ParseText, seal.ParseBytes} {
			s, ok, err := parse(in)
			if ok != bytes.HasPrefix(in, []byte("sealed:")) || !ok && err != nil {
				t.Errorf("%q: the parser returns ok %v, %v", in, ok, err)
			}
			if err != nil && !errors.Is(err, seal.ErrTampered) {
				t.Error(err)
			}
			if !ok || err != nil {
				continue
			}
			if plain, err := key.Open(s, at); err == nil && !real[string(in)] {
				t.Errorf("%q is decrypted to %q", in, plain)
			}
		}
		_ = r.Apply(seal.Record{Key: in, Value: in})
		_ = r.Apply(seal.Record{Key: in})
		if _, _, err := seal.ParseRecordKey(in); err != nil && strings.HasPrefix(string(in), "erased/") && len(in) > len("erased/") {
			t.Error(err)
		}
	})
}
