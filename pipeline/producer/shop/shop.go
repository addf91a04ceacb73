// Package shop generates the events of an example shop: users sign up, change their
// details, place orders, pay, receive parcels, and some leave.
//
// Generation is deterministic: the same [Story] gives the same events on every machine.
// The events are consistent: an order is created before it is paid, and paid before it
// is shipped. After a user is deleted, there are no more events of the user or of the
// user's orders.
//
// Start reading at [Story.All]. The package has no shared state; an iteration belongs to
// the goroutine that runs it.
package shop

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Story configures a sequence of events. The zero value is an endless sequence with
// seed 0.
type Story struct {
	// Seed seeds the random generator. Ids of users and orders contain it, so one topic
	// can hold the stories of several seeds.
	Seed uint64
	// Events is the number of events; 0 means endless.
	Events int
	// Users is the maximum number of users. If 0, about one event in ten is a sign-up,
	// without a maximum.
	Users int
	// Start is a time before the first event.
	Start time.Time
	// Gap is the mean time between two events; 0 means one second.
	Gap time.Duration
}

// An Event is an event in Millrace's JSON form.
type Event struct {
	ID        string            `json:"id"`
	Type      string            `json:"type"`
	Timestamp time.Time         `json:"timestamp"`
	Version   int               `json:"version"`
	Metadata  map[string]string `json:"metadata"`
	Data      any               `json:"data"` // a User, Order or OrderID, depending on Type
}

// User is the data of UserCreated, UserUpdated (only the changed fields) and
// UserDeleted (only the id).
type User struct {
	ID    string `json:"id"`
	Email string `json:"email,omitempty"`
	Name  string `json:"name,omitempty"`
}

// Order is the data of OrderCreated.
type Order struct {
	ID          string  `json:"id"`
	UserID      string  `json:"user_id"`
	Items       []Item  `json:"items"`
	TotalAmount float64 `json:"total_amount"` // the sum over Items, in whole cents
}

// Item is a line of an order.
type Item struct {
	ProductID string  `json:"product_id"`
	Quantity  int     `json:"quantity"`
	Price     float64 `json:"price"` // per piece
}

// OrderID is the data of OrderPaid and OrderShipped.
type OrderID struct {
	ID string `json:"id"`
}

// All returns the events in order of time. The caller owns each event.
func (s Story) All() iter.Seq[*Event] {
	return func(yield func(*Event) bool) {
		t := newTeller(s)
		for n := 0; s.Events == 0 || n < s.Events; n++ {
			if !yield(t.next(n)) {
				return
			}
		}
	}
}

// Relative frequencies of the actions. An action's probability is its frequency divided
// by the sum over all actions that are possible at the moment.
const (
	orderFrequency  = 100
	payFrequency    = 98
	shipFrequency   = 96
	updateFrequency = 20
	leaveFrequency  = 4
)

const (
	abandonedPercent = 2  // percentage of orders that are never paid
	signUpEvery      = 10 // one event in signUpEvery is a sign-up
	productCount     = 60
)

type user struct {
	id, first, last string
	number          int // sequence number of the sign-up, from 1
	addresses       int // number of earlier email addresses
	open            int // number of orders that are neither shipped nor abandoned
}

type order struct {
	id   string
	user *user
}

type product struct {
	id    string
	cents int
}

// teller is the state of an iteration over a story.
type teller struct {
	Story
	random   *rand.Rand
	source   *rand.PCG
	now      time.Time
	every    int // every such event is a sign-up, up to the maximum of users
	users    int // number of users so far
	orders   int // number of orders so far
	active   []*user
	unpaid   []order
	paid     []order
	products []product
}

func newTeller(s Story) *teller {
	if s.Gap <= 0 {
		s.Gap = time.Second
	}
	source := rand.NewPCG(s.Seed, 0x6d696c6c72616365)
	t := &teller{Story: s, source: source, random: rand.New(source), now: s.Start.UTC().Truncate(time.Microsecond), every: signUpEvery}
	if s.Users > 0 && s.Events > 0 {
		// All users sign up within the first 70 % of the story.
		t.every = max(1, s.Events*7/10/s.Users)
	}
	for i := range productCount {
		// Many cheap products, few expensive ones.
		cents := 199 + t.random.IntN(20)*100 + t.random.IntN(10)*t.random.IntN(10)*t.random.IntN(10)*50
		t.products = append(t.products, product{fmt.Sprintf("p-%03d", i+1), cents})
	}
	return t
}

// next returns event number n, counted from 0.
func (t *teller) next(n int) *Event {
	t.now = t.now.Add(time.Duration(t.random.Int64N(2*int64(t.Gap) + 1))).Truncate(time.Microsecond)
	if len(t.active) == 0 || n%t.every == 0 && (t.Users == 0 || t.users < t.Users) {
		return t.signUp()
	}
	pay, ship := payFrequency, shipFrequency
	if len(t.unpaid) == 0 {
		pay = 0
	}
	if len(t.paid) == 0 {
		ship = 0
	}
	switch r := t.random.IntN(orderFrequency + pay + ship + updateFrequency + leaveFrequency); {
	case r < orderFrequency:
		return t.order()
	case r < orderFrequency+pay:
		return t.pay()
	case r < orderFrequency+pay+ship:
		return t.ship()
	case r < orderFrequency+pay+ship+leaveFrequency:
		return t.leave()
	}
	return t.update()
}

func (t *teller) event(typ string, data any) *Event {
	return &Event{ID: t.uuid(), Type: typ, Timestamp: t.now, Version: 1, Metadata: map[string]string{"source": "shop"}, Data: data}
}

// uuid returns a UUID in the form of version 4, from the story's random source.
func (t *teller) uuid() string {
	a, b := t.source.Uint64(), t.source.Uint64()
	a = a&^0xf000 | 0x4000
	b = b&^(0xc<<60) | 0x8<<60
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&(1<<48-1))
}

func (t *teller) id(letter string, n, digits int) string {
	return fmt.Sprintf("%s-%d-%0*d", letter, t.Seed, digits, n)
}

func (t *teller) signUp() *Event {
	t.users++
	u := &user{id: t.id("u", t.users, 5), number: t.users, first: pick(t, firstNames), last: pick(t, lastNames)}
	t.active = append(t.active, u)
	return t.event("UserCreated", User{u.id, u.email(), u.name()})
}

func (t *teller) order() *Event {
	t.orders++
	u := t.active[t.buyer()]
	o := Order{ID: t.id("o", t.orders, 6), UserID: u.id}
	total := 0
	for range 1 + t.random.IntN(2)*t.random.IntN(4) {
		p := t.products[t.random.IntN(len(t.products))]
		quantity := 1 + t.random.IntN(2)*t.random.IntN(3)
		total += quantity * p.cents
		o.Items = append(o.Items, Item{p.id, quantity, dollars(p.cents)})
	}
	o.TotalAmount = dollars(total)
	if t.random.IntN(100) >= abandonedPercent {
		t.unpaid = append(t.unpaid, order{o.ID, u})
		u.open++
	}
	return t.event("OrderCreated", o)
}

func (t *teller) pay() *Event {
	o := t.takeEarly(&t.unpaid)
	t.paid = append(t.paid, o)
	return t.event("OrderPaid", OrderID{o.id})
}

func (t *teller) ship() *Event {
	o := t.takeEarly(&t.paid)
	o.user.open--
	return t.event("OrderShipped", OrderID{o.id})
}

func (t *teller) update() *Event {
	u := t.active[t.random.IntN(len(t.active))]
	changed := User{ID: u.id}
	if t.random.IntN(3) == 0 {
		u.last = pick(t, lastNames)
		changed.Name = u.name()
	}
	if changed.Name == "" || t.random.IntN(2) == 0 {
		u.addresses++
		changed.Email = u.email()
	}
	return t.event("UserUpdated", changed)
}

// leave deletes a user without open orders. The last user is never deleted. If a few
// random picks find no user to delete, leave returns an update instead.
func (t *teller) leave() *Event {
	for range 8 {
		i := t.random.IntN(len(t.active))
		u := t.active[i]
		if u.open > 0 || len(t.active) == 1 {
			continue
		}
		last := len(t.active) - 1
		t.active[i], t.active[last] = t.active[last], nil
		t.active = t.active[:last]
		return t.event("UserDeleted", User{ID: u.id})
	}
	return t.update()
}

// buyer returns the index of an active user. A few users order often, most rarely.
func (t *teller) buyer() int {
	r := t.random.Float64()
	return int(r * r * r * float64(len(t.active)))
}

// takeEarly removes and returns one of the first five orders, so orders progress
// roughly in the order of their creation.
func (t *teller) takeEarly(list *[]order) order {
	l := *list
	i := t.random.IntN(min(len(l), 5))
	o := l[i]
	copy(l[1:], l[:i])
	l[0] = order{}
	*list = l[1:]
	return o
}

func pick(t *teller, names []string) string { return names[t.random.IntN(len(names))] }

// dollars returns the float64 nearest to the decimal amount.
func dollars(cents int) float64 { return float64(cents) / 100 }

func (u *user) name() string { return u.first + " " + u.last }

func (u *user) email() string {
	letters := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r > unicode.MaxASCII || !unicode.IsLetter(r) {
				return -1
			}
			return unicode.ToLower(r)
		}, s)
	}
	number := strconv.Itoa(u.number)
	if u.addresses > 0 {
		number += "." + strconv.Itoa(u.addresses)
	}
	return letters(u.first) + "." + letters(u.last) + "." + number + "@example.com"
}

var firstNames = []string{
	"Aino", "Alma", "Amara", "Anton", "Bao", "Bea", "Carlos", "Chloé", "Dana", "Diego", "Elif", "Emil", "Farah", "Finn", "Greta", "Hana",
	"Ibrahim", "Ines", "Jonas", "Kaito", "Lena", "Liam", "Mei", "Mila", "Noor", "Olu", "Priya", "Rosa", "Sven", "Tariq", "Yara", "Zoë",
}

var lastNames = []string{
	"Almeida", "Andersen", "Bauer", "Chen", "Costa", "Dubois", "Eriksen", "Fischer", "García", "Haddad", "Ivanova", "Jensen", "Kaya", "Kim",
	"Kovács", "Larsen", "Mbeki", "Moreau", "Nakamura", "Novak", "O'Brien", "Okafor", "Patel", "Quispe", "Rossi", "Santos", "Singh", "Tanaka", "Weber", "Yilmaz",
}
