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

// The records of the key topic, which is compacted. All records of a subject are in one
// partition.
//
//	key/ID/SUBJECT      a wrapped data key: keyRecord. Null: the key is destroyed
//	erased/SUBJECT      the subject was forgotten: erasedRecord
//
// Each data key has a record key of its own. If the record key were the subject's,
// compaction would keep the last of two data keys that were created at the same time.
// But producers use the first, so its ciphertexts would be lost.
//
// The erased record must stay, because a null alone does not: brokers delete it after
// delete.retention.ms, and then a producer could create a new key for the subject.
// Whatever record has the key erased/SUBJECT, also a null, the subject was forgotten.
const (
	recordFormat = 1
	keyHead      = "key/"
	erasedHead   = "erased/"
)

// While a key moves to another key-encryption key, it is wrapped by both, so that a process
// without the new one can read it, also one of an earlier release. The newest is the last.
type keyRecord struct {
	Format  int       `json:"format"`
	KEK     string    `json:"kek"`
	Wrapped []byte    `json:"wrapped"`
	Time    time.Time `json:"time"` // of the creation of the key
	More    []moreBox `json:"more,omitempty"`
}

type moreBox struct {
	KEK     string `json:"kek"`
	Wrapped []byte `json:"wrapped"`
}

// newKeyRecord returns the value of the record of a key.
func newKeyRecord(w wrapped, at time.Time) keyRecord {
	v := keyRecord{Format: recordFormat, KEK: w.boxes[0].kek, Wrapped: w.boxes[0].bytes, Time: at}
	for _, b := range w.boxes[1:] {
		v.More = append(v.More, moreBox{b.kek, b.bytes})
	}
	return v
}

// parseValue parses the value of the record of a key.
func parseValue(id KeyID, value []byte) (v keyRecord, w wrapped, err error) {
	err = json.Unmarshal(value, &v)
	w = wrapped{id, []box{{v.KEK, v.Wrapped}}}
	for _, b := range v.More {
		w.boxes = append(w.boxes, box{b.KEK, b.Wrapped})
	}
	bad := err != nil || v.Format != recordFormat || len(w.boxes) > 255
	for _, b := range w.boxes {
		bad = bad || !kekID.MatchString(b.kek) || len(b.bytes) == 0 || len(b.bytes) > 255
	}
	if bad {
		return v, w, fmt.Errorf("the key %s of a subject has a format that this version cannot read", id)
	}
	return v, w, nil
}

type erasedRecord struct {
	Format int       `json:"format"`
	Time   time.Time `json:"time"`
}

// A Record is the key and the value of a record of the key topic.
type Record struct{ Key, Value []byte }

// NewKey generates a data key for a subject and returns its record.
func (k *KEKs) NewKey(subject string, now time.Time) (Record, error) {
	w := k.wrap(subject)
	value, err := json.Marshal(newKeyRecord(w, now.UTC()))
	return Record{recordKey(subject, w.id), value}, err
}

func recordKey(subject string, id KeyID) []byte { return []byte(keyHead + id.String() + "/" + subject) }

// NewErasure returns the record that marks a subject as forgotten since now.
func NewErasure(subject string, now time.Time) (Record, error) {
	value, err := json.Marshal(erasedRecord{recordFormat, now.UTC()})
	return Record{[]byte(erasedHead + subject), value}, err
}

// MarkOf returns the subject that a record with this key marks as forgotten, whatever its
// value is. ok is false for other records.
func MarkOf(key []byte) (subject string, ok bool) {
	subject, _, isKey, err := parseKey(key)
	return subject, err == nil && !isKey
}

// ParseRecordKey parses the key of a record. It returns the subject, and whether the record is
// that of a data key.
func ParseRecordKey(key []byte) (subject string, isKey bool, err error) {
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
	return "", id, false, fmt.Errorf("a record of the key topic has the key %.80q, want %sID/SUBJECT or %sSUBJECT", key, keyHead, erasedHead)
}

func (id *KeyID) set(raw []byte) *KeyID {
	copy(id[:], raw)
	return id
}

// A Ring holds the keys of all subjects, from the records of the key topic so far. It
// keeps the keys wrapped, in about 170 bytes per subject, and caches recently used keys
// unwrapped. It is safe for concurrent use.
type Ring struct {
	keks *KEKs

	mu   sync.Mutex // guards the fields below, except for reading rows
	rows *rows.Map  // by subject: entry

	// Unwrapped keys by subject. When fresh is full, it becomes stale, and the keys
	// that were only in stale are evicted.
	fresh map[string][]*DataKey
	stale map[string][]*DataKey
}

// maxUnwrapped is about the maximum number of subjects with unwrapped keys.
const maxUnwrapped = 1 << 13

// NewRing returns an empty Ring. If keks is nil, the Ring knows the ids of the keys but
// cannot unwrap any.
func NewRing(keks *KEKs) *Ring {
	return &Ring{keks: keks, rows: rows.New(), fresh: map[string][]*DataKey{}}
}

// noTime is the time of an erasure whose record has none.
const noTime = 1

// entry is the state of a subject.
type entry struct {
	erased int64     // time of the first mark with a time, in seconds since 1970; 0 if it is not erased
	keys   []wrapped // in the order of the last record of each
}

func (e *entry) append(dst []byte) []byte {
	dst = binary.AppendVarint(dst, e.erased)
	for _, k := range e.keys {
		dst = append(append(dst, k.id[:]...), byte(len(k.boxes)))
		for _, b := range k.boxes {
			dst = append(append(dst, byte(len(b.kek))), b.kek...)
			dst = append(append(dst, byte(len(b.bytes))), b.bytes...)
		}
	}
	return dst
}

// readEntry parses the output of entry.append. The boxes share memory with the row.
func readEntry(row []byte) (e entry) {
	if len(row) == 0 {
		return e
	}
	at, n := binary.Varint(row)
	e.erased = at
	for row = row[n:]; len(row) > 0; {
		var k wrapped
		row = row[copy(k.id[:], row):]
		k.boxes, row = make([]box, row[0]), row[1:]
		for i := range k.boxes {
			n := 1 + int(row[0])
			k.boxes[i].kek, row = string(row[1:n]), row[n:]
			n = 1 + int(row[0])
			k.boxes[i].bytes, row = row[1:n:n], row[n:]
		}
		e.keys = append(e.keys, k)
	}
	return e
}

// Apply applies a record. The records of a partition must come in their order. A record
// that cannot be parsed is an error and changes nothing.
func (r *Ring) Apply(in Record) error {
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
		_, w, err := parseValue(id, in.Value)
		if err != nil {
			return err
		}
		// At the end, where it is for a reader after compaction.
		e.keys = append(e.keys, w)
	case e.erased <= noTime:
		var v erasedRecord
		// Fail safe: a null, or a record that cannot be parsed, still marks the subject.
		if err := json.Unmarshal(in.Value, &v); err != nil || v.Time.Unix() <= 0 {
			v.Time = time.Unix(noTime, 0)
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

// Current returns the key to encrypt a subject's fields with: the first of its keys in the
// log. An error is ErrNoKey, ErrErased or ErrNoKEK.
func (r *Ring) Current(subject string) (*DataKey, error) { return r.find(subject, nil) }

// Find returns the subject's key with the id, to decrypt a ciphertext. An error is ErrNoKey, ErrErased or ErrNoKEK.
func (r *Ring) Find(subject string, id KeyID) (*DataKey, error) { return r.find(subject, &id) }

func (r *Ring) find(subject string, id *KeyID) (*DataKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, ok := r.rows.Get([]byte(subject))
	e := readEntry(row)
	if e.erased == noTime {
		return nil, ErrErased
	}
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

// Erased reports whether the subject is marked as forgotten.
func (r *Ring) Erased(subject string) bool {
	row, _ := r.rows.Get([]byte(subject))
	return readEntry(row).erased != 0
}

// Len returns the number of subjects, including the forgotten ones.
func (r *Ring) Len() int { return r.rows.Len() }
