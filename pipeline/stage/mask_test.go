package stage_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestMask(t *testing.T) {
	full := with(t, sampled, "data.tags", `["4111 1111","12"]`, "data.maybe", `"secret"`, "data.maybe_tags", `["a",null]`,
		"data.people", `{"ann":{"name":"Ann","cards":["4111","42"]},"bob":{"name":null,"cards":[]}}`, "metadata", `{"ip":"10.0.0.1","agent":"x"}`)
	check(t, []testCase{
		{
			name:   "keep counts characters, not bytes",
			stages: `mask: {on: [UserCreated], fields: {data.name: keep_first 2, metadata.card: keep_last 4, data.email: keep_last 3}}`,
			in:     []string{user, paid}, want: []string{`data.email="***.cd" data.name="Ær****" metadata.card="*****1111"`, "="},
		},
		{
			name:   "a text that is not longer than N is hidden completely",
			stages: `mask: {on: [UserCreated], fields: {data.name: keep_first 6, data.email: keep_last 6, metadata.card: keep_last 9, data.id: keep_first 3}}`,
			in:     []string{user, with(t, user, "data.name", `""`)}, want: []string{`data.email="******" data.id="***" data.name="******" metadata.card="*********"`, `data.email="******" data.id="***" metadata.card="*********"`},
		},
		{
			name:   "redact has a neutral value for every type",
			stages: `mask: {on: [Sampled], fields: {data.flag: redact, data.small: redact, data.large: redact, data.single: redact, data.double: redact, data.raw: redact, data.price: redact, data.text: redact, data.uuid: redact, data.uuid16: redact, data.four: redact, data.tags: redact, data.maybe_tags: redact, data.maybe: redact, data.maybe_number: redact, data.people: redact, metadata: redact}}`,
			in:     []string{full}, want: []string{`data.double=0 data.flag=false data.four="AAAAAA==" data.large=0 data.maybe=null data.maybe_number=null data.maybe_tags=null data.price="0.00" data.raw="" data.single=0 data.small=0 data.text="***" data.uuid="00000000-0000-0000-0000-000000000000" data.uuid16="00000000-0000-0000-0000-000000000000" -data.maybe_tags[0] -data.maybe_tags[1] -data.people -data.tags[0] -data.tags[1] -metadata`},
		},
		{
			name:   "values inside arrays, maps, records and nullable fields",
			stages: `mask: {on: [Sampled], fields: {"data.tags[]": keep_last 4, "data.maybe_tags[]": redact, "data.people[].name": keep_first 1, "data.people[].cards[]": keep_last 2, "metadata[]": redact}}`,
			in:     []string{full, sampled}, want: []string{`data.maybe_tags[0]=null data.people.ann.cards[0]="**11" data.people.ann.cards[1]="**" data.people.ann.name="A**" data.tags[0]="*****1111" data.tags[1]="**" metadata.agent="***" metadata.ip="***"`, "="},
		},
		{
			name:   "a missing map entry is not created",
			stages: `mask: {on: [Sampled], fields: {metadata.ip: redact, metadata.host: redact}}`,
			in:     []string{full, sampled}, want: []string{`metadata.ip="***"`, "="},
		},
		{
			name:   "mask sees the changes of the previous stages",
			stages: "- enrich: {on: [UserCreated], set: {data.name: \"'x' + data.id\"}}\n- mask: {on: [UserCreated], fields: {data.name: keep_first 2}}",
			in:     []string{user}, want: []string{`data.name="xu**"`},
		},
	})
}

// Digests equal those of the standard library, for every Avro type, and are stable.
func TestMaskHashesLikeTheStandardLibrary(t *testing.T) {
	keyed := func(value string) []byte {
		h := hmac.New(sha256.New, []byte("top secret"))
		h.Write([]byte(value))
		return h.Sum(nil)
	}
	salted := func(value string) []byte { sum := sha256.Sum256([]byte("NaCl" + value)); return sum[:] }
	plain := func(value string) []byte { sum := sha256.Sum256([]byte(value)); return sum[:] }
	v8 := func(sum []byte) uuid.UUID {
		id := uuid.UUID(sum[:16])
		id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
		return id
	}
	id := uuid.MustParse("4707dafd-3ce1-5973-9f7b-1c9c452822e7")
	for secret, digest := range map[string]func(string) []byte{"key: ${KEY}": keyed, "salt: ${SALT}": salted, "": plain} {
		stages := strings.TrimSpace("mask:\n  on: [Sampled]\n  fields: {data.text: hash, data.raw: hash, data.uuid: hash, data.uuid16: hash, data.maybe: hash, 'data.tags[]': hash, metadata.a: hash}\n  " + secret)
		r := newRunner(t, stages, map[string]string{"KEY": "top secret", "SALT": "NaCl"})
		want := fmt.Sprintf(`data.maybe="%x" data.raw="%s" data.tags[0]="%x" data.text="%x" data.uuid="%s" data.uuid16="%s" metadata.a="%x"`,
			digest("secret"), base64.StdEncoding.EncodeToString(digest("ab")), digest("t"), digest("grün"), v8(digest(string(id[:]))), v8(digest("0123456789abcdef")), digest(""))
		in := with(t, sampled, "data.maybe", `"secret"`, "data.tags", `["t"]`, "metadata", `{"a":""}`)
		for range 3 {
			if got := r.run(t, in); got != want {
				t.Fatalf("%s\ngot  %s\nwant %s", secret, got, want)
			}
		}
		if v := v8(digest("x")); v.Version() != 8 || v.Variant() != uuid.RFC4122 {
			t.Errorf("%s is not a version 8 UUID", v)
		}
	}
}

func TestMaskFaults(t *testing.T) {
	checkBad(t, []badCase{
		{"unknown methods and wrong arguments", `mask: {on: [UserCreated], fields: {data.email: hsah, data.name: redact all, data.id: keep_last, metadata.a: keep_first 0}}`, `
hsah, data.n ^ "hsah" is not a method to hide a value; use hash, redact, keep_first N or keep_last N
redact all,  ^ redact takes no argument, but is written as "redact all"
keep_last, m ^ keep_last needs the number of characters to keep, from 1 to 1000, as in keep_last 4
keep_first 0 ^ keep_first needs the number of characters to keep, from 1 to 1000, as in keep_first 4`},
		{"nothing", `mask: {fields: {}}`, `
fields: {}} ^ a mask needs at least one field to hide; fields: {data.email: hash}`},
		{"method does not support the type", `mask: {on: [Sampled], fields: {data.small: hash, data.color: redact, data.either: redact, data.double: keep_last 4, data.uuid: keep_first 2, data.price: hash, "data.people[]": redact}}`, `
data.small:  ^ data.small of Sampled is int, but hash is for strings, UUIDs and plain bytes; use redact
data.color:  ^ data.color of Sampled is shop.Color, which has no neutral value; hide its parts, or make it nullable
data.either: ^ data.either of Sampled is string or long, which has no neutral value; hide its parts, or make it nullable
data.double: ^ data.double of Sampled is double, but keep_last is for strings without a logical type; use redact
data.uuid: k ^ data.uuid of Sampled is string (uuid), but keep_first is for strings without a logical type; use redact or hash
data.price:  ^ data.price of Sampled is bytes (decimal), but hash is for strings, UUIDs and plain bytes; use redact
data.people[ ^ data.people[] of Sampled is shop.Person, which has no neutral value; hide its parts, or make it nullable`},
		{"no such field", `mask: {on: [OrderCreated], fields: {data.emial: hash, "data.items[].prize": redact, "data.items.price": redact, "data.user_id[]": hash, "data.items[].price.x": redact, "data.items[]price": redact}}`, `
emial: hash, ^ shop.OrderCreated has no field data.emial
data.items[] ^ shop.Item has no field prize; did you mean "price"?
price": reda ^ data.items is an array of shop.Item, which has no fields to set
data.user_id ^ data.user_id of OrderCreated is string: [] is for arrays and maps
data.items[] ^ data.items[].price of OrderCreated is double, which has no fields
data.items[] ^ "data.items[]price" is not a path; as in data.items[].price`},
		{"overlaps", `mask: {on: [Sampled], fields: {metadata.a: hash, "metadata[]": redact, "data.people[].cards": redact, "data.people[].cards[]": hash, "data.tags[]": hash, data.tags: redact, data.maybe_tags: redact, "data.maybe_tags[]": redact}}`, `
metadata[]": ^ metadata[] and metadata.a overlap; remove one of them
data.people[ ^ data.people[].cards[] and data.people[].cards overlap; remove one of them
data.tags: r ^ data.tags and data.tags[] overlap; remove one of them
data.maybe_t ^ data.maybe_tags[] and data.maybe_tags overlap; remove one of them`},
		{"two secrets", `mask: {on: [UserCreated], fields: {data.email: hash}, key: a, salt: b}`, `
salt: b} ^ a mask takes key or salt, not both; keep key: digests with a key cannot be guessed either`},
		{"a key without hash", `mask: {on: [UserCreated], fields: {data.email: redact}, key: a}`, `
key: a} ^ key has no effect: no field uses hash`},
		{"the type", `mask: {on: [UserCreated], fields: {type: redact}}`, `
type: redact ^ type is "UserCreated" in every shop.UserCreated and cannot be set`},
	})
}

func TestMaskAllocatesNothing(t *testing.T) {
	for _, stages := range []string{
		`mask: {on: [UserCreated], fields: {data.name: keep_first 2, metadata.card: keep_last 4, data.email: redact}}`,
		`mask: {on: [UserCreated], fields: {data.email: hash, id: hash, "metadata[]": hash}}`,
		`mask: {on: [UserCreated], fields: {data.email: hash, id: hash}, key: abc}`,
		`mask: {on: [UserCreated], fields: {data.email: hash, id: hash}, salt: abc}`,
	} {
		if n := allocations(t, newRunner(t, stages, nil), user); n != 0 {
			t.Errorf("%s: %v allocations per event, want 0", stages, n)
		}
	}
}
