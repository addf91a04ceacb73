package seal

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"millrace/pipeline/rows"
)

// The records of a key topic, which is compacted. All of a subject are in one
// partition.
//
//	key/ID/SUBJECT      a data key, wrapped: keyRecord. Null: it is destroyed
//	erased/SUBJECT      the subject was forgotten: erasedRecord
//
// Each key has a record key of its own. With one for the subject, compaction would
// keep the last of two keys that were made at the same time, and it is the first
// that counts: what is encrypted with it would be lost.
//
// The mark stays, for the null does not: brokers forget it after a while, and then
// nothing would say that a new key is not to be made.
const (
	recordFormat = 1
	keyHead      = "key/"
	erasedHead   = "erased/"
)

type keyRecord struct {
	Format  int       `json:"format"`
	KEK     string    `json:"kek"`
	Wrapped []byte    `json:"wrapped"`
	Time    time.Time `json:"time"`
}

type erasedRecord struct {
	Format int       `json:"format"`
	Time   time.Time `json:"time"`
}

// A Record is one of a key topic, without the rest that Kafka knows of it.
type Record struct{ Key, Value []byte }

// NewKey returns the record of a new key for a subject.
func (k *KEKs) NewKey(subject string, now time.Time) (Record, error) {
	w := k.wrap(subject)
	value, err := json.Marshal(keyRecord{recordFormat, w.kek, w.box, now.UTC()})
	return Record{recordKey(subject, w.id), value}, err
}

func recordKey(subject string, id KeyID) []byte { return []byte(keyHead + id.String() + "/" + subject) }

// Erased returns the record that marks a subject as forgotten.
func Erased(subject string, now time.Time) (Record, error) {
	value, err := json.Marshal(erasedRecord{recordFormat, now.UTC()})
	return Record{[]byte(erasedHead + subject), value}, err
}

// SubjectOf returns whose record it is, by its key, and whether it is one of a data
// key.
func SubjectOf(key []byte) (subject string, isKey bool, err error) {
	subject, _, isKey, err = parseKey(key)
	return subject, isKey, err
}

func parseKey(key []byte) (subject string, id KeyID, isKey bool, err error) {
	text := string(key)
	if subject, ok := strings.CutPrefix(text, erasedHead); ok && subject != "" {
		return subject, id, false, nil
	}
	if rest, ok := strings.CutPrefix(text, keyHead); ok {
		name, subject, _ := strings.Cut(rest, "/")
		raw, err := hex.DecodeString(name)
		if err == nil && len(raw) == len(id) && subject != "" && id.set(raw).String() == name {
			return subject, id, true, nil
		}
	}
	return "", id, false, fmt.Errorf("a record of a key topic has the key %.80q, which is neither %sID/SUBJECT nor %sSUBJECT", key, keyHead, erasedHead)
}

func (id *KeyID) set(raw []byte) *KeyID {
	copy(id[:], raw)
	return id
}

// A Ring is the keys of all subjects, as far as a key topic was read. The keys
// stay wrapped, in about 170 bytes a subject; those that were used of late are kept
// unwrapped, too, so many at most. It is safe for concurrent use.
type Ring struct {
	keks *KEKs

	mu    sync.Mutex // guards what follows, but for reading rows
	rows  *rows.Map  // by subject: entry
	fresh map[string][]*DataKey
	stale map[string][]*DataKey
}

// maxUnwrapped is of how many subjects keys are kept unwrapped, about.
const maxUnwrapped = 1 << 13

// NewRing returns an empty Ring. Without KEKs it knows which keys there are, but
// can use none.
func NewRing(keks *KEKs) *Ring {
	return &Ring{keks: keks, rows: rows.New(), fresh: map[string][]*DataKey{}}
}

// entry is what is known of a subject: the keys in the order of their records, the
// last of each.
type entry struct {
	erased int64 // when it was forgotten, in seconds since 1970; 0 if it was not
	keys   []wrapped
}

func (e *entry) append(dst []byte) []byte {
	dst = binary.AppendVarint(dst, e.erased)
	for _, k := range e.keys {
		dst = append(dst, k.id[:]...)
		dst = append(append(dst, byte(len(k.kek))), k.kek...)
		dst = append(append(dst, byte(len(k.box))), k.box...)
	}
	return dst
}

// readEntry reads what entry.append wrote; the boxes are the row's own.
func readEntry(row []byte) (e entry) {
	if len(row) == 0 {
		return e
	}
	at, n := binary.Varint(row)
	e.erased = at
	for row = row[n:]; len(row) > 0; {
		var k wrapped
		row = row[copy(k.id[:], row):]
		n := 1 + int(row[0])
		k.kek, row = string(row[1:n]), row[n:]
		n = 1 + int(row[0])
		k.box, row = row[1:n:n], row[n:]
		e.keys = append(e.keys, k)
	}
	return e
}

// Take takes in a record, in the order of its partition. One that cannot be
// understood is an error, and as if it were not there.
func (r *Ring) Take(in Record) error {
	subject, id, isKey, err := parseKey(in.Key)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	row, _ := r.rows.Get([]byte(subject))
	e := readEntry(row)
	switch {
	case isKey:
		e.keys = slices.DeleteFunc(e.keys, func(k wrapped) bool { return k.id == id })
		if in.Value == nil {
			break
		}
		var v keyRecord
		if err := json.Unmarshal(in.Value, &v); err != nil || v.Format != recordFormat || !kekID.MatchString(v.KEK) || len(v.Wrapped) == 0 || len(v.Wrapped) > 255 {
			return fmt.Errorf("the key %s of a subject is in a form that this program does not know", id)
		}
		// Behind the others, as a reader finds it who comes after compaction.
		e.keys = append(e.keys, wrapped{id, v.KEK, v.Wrapped})
	case in.Value == nil:
		e.erased = 0
	default:
		var v erasedRecord
		// A mark that cannot be read is one all the same: it is safer to refuse.
		if err := json.Unmarshal(in.Value, &v); err != nil || v.Time.Unix() <= 0 {
			v.Time = time.Unix(1, 0)
		}
		e.erased = v.Time.Unix()
	}
	delete(r.fresh, subject)
	delete(r.stale, subject)
	if e.erased == 0 && len(e.keys) == 0 {
		r.rows.Delete([]byte(subject))
		return nil
	}
	r.rows.Set([]byte(subject), e.append(nil))
	return nil
}

// Current returns the key by which a subject's fields are encrypted: of those that
// it has, the first in the log. An error is ErrNoKey, ErrErased or ErrNoKEK.
func (r *Ring) Current(subject string) (*DataKey, error) { return r.find(subject, nil) }

// Find returns the key of a ciphertext. An error is ErrNoKey, ErrErased or ErrNoKEK.
func (r *Ring) Find(subject string, id KeyID) (*DataKey, error) { return r.find(subject, &id) }

func (r *Ring) find(subject string, id *KeyID) (*DataKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows.Get([]byte(subject))
	e := readEntry(row)
	if e.erased != 0 {
		return nil, fmt.Errorf("%w (%s)", ErrErased, time.Unix(e.erased, 0).UTC().Format(time.DateOnly))
	}
	if !ok || len(e.keys) == 0 {
		return nil, ErrNoKey
	}
	at := 0
	if id != nil {
		if at = slices.IndexFunc(e.keys, func(k wrapped) bool { return k.id == *id }); at < 0 {
			return nil, ErrNoKey
		}
	}
	keys := r.fresh[subject]
	if keys == nil {
		keys = r.stale[subject]
	}
	i := slices.IndexFunc(keys, func(k *DataKey) bool { return k.ID == e.keys[at].id })
	if i < 0 {
		k, err := r.keks.unwrap(subject, e.keys[at])
		if err != nil {
			return nil, err
		}
		keys, i = append(keys, k), len(keys)
	}
	if len(r.fresh) >= maxUnwrapped/2 {
		r.fresh, r.stale = map[string][]*DataKey{}, r.fresh
	}
	r.fresh[subject] = keys
	return keys[i], nil
}

// Forgotten reports whether the subject is marked as forgotten.
func (r *Ring) Forgotten(subject string) bool {
	row, _ := r.rows.Get([]byte(subject))
	return readEntry(row).erased != 0
}

// Len returns the number of subjects, those that were forgotten included.
func (r *Ring) Len() int { return r.rows.Len() }
