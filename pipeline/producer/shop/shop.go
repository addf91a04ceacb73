// Package shop makes the events of a shop that does not exist: users sign up,
// change their details, order, pay, get their parcels, and some leave.
//
// It is pure: the same [Story] gives the same events, wherever and whenever it
// is told. Every aggregate's part of it is legal: nothing is paid that was not
// ordered, nothing shipped that was not paid, and of a user who has left, or of
// their orders, nothing more is heard.
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

// A Story says what is to happen. The zero value is an endless one from seed 0.
type Story struct {
	// Seed decides everything. Users and orders carry it in their ids, so the
	// stories of two seeds can stand in one topic.
	Seed uint64
	// Events is how many there are to be; no end if 0.
	Events int
	// Users bounds how many sign up. If 0, about one event in ten is a sign-up.
	Users int
	// Start is the time before the first event.
	Start time.Time
	// Gap is the mean time from one event to the next; a second if 0.
	Gap time.Duration
}

// An Event is one event in the JSON form of Millrace.
type Event struct {
	ID        string            `json:"id"`
	Type      string            `json:"type"`
	Timestamp time.Time         `json:"timestamp"`
	Version   int               `json:"version"`
	Metadata  map[string]string `json:"metadata"`
	Data      any               `json:"data"` // one of User, Order, OrderID, by Type
}

// User is the data of UserCreated, UserUpdated (what changed) and UserDeleted
// (the id alone).
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

// Item is one line of an order.
type Item struct {
	ProductID string  `json:"product_id"`
	Quantity  int     `json:"quantity"`
	Price     float64 `json:"price"` // of one piece
}

// OrderID is the data of OrderPaid and OrderShipped.
type OrderID struct {
	ID string `json:"id"`
}

// Tell returns the story's events in order of time. Each event is new; the
// caller may keep it.
func (s Story) Tell() iter.Seq[*Event] {
	return func(yield func(*Event) bool) {
		t := newTeller(s)
		for n := 0; s.Events == 0 || n < s.Events; n++ {
			if !yield(t.next(n)) {
				return
			}
		}
	}
}

// How often what happens, in parts of the sum of those that can happen now.
const (
	oftenOrder  = 100
	oftenPay    = 98
	oftenShip   = 96
	oftenUpdate = 20
	oftenLeave  = 4

	abandoned   = 2 // of 100 orders, how many are never paid
	newcomers   = 10
	productsNum = 60
)

type user struct {
	id, first, last string
	number          int // of the sign-up, from 1
	addresses       int // how many there were before
	open            int // orders that are under way
}

type order struct {
	id   string
	user *user
}

type product struct {
	id    string
	cents int
}

// teller is a story half told.
type teller struct {
	Story
	random   *rand.Rand
	source   *rand.PCG
	now      time.Time
	every    int // a sign-up is due at each such event, while there are users to come
	users    int // who have signed up
	orders   int // that were made
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
	t := &teller{Story: s, source: source, random: rand.New(source), now: s.Start.UTC().Truncate(time.Microsecond), every: newcomers}
	if s.Users > 0 && s.Events > 0 {
		// All have come after seven tenths of the story.
		t.every = max(1, s.Events*7/10/s.Users)
	}
	for i := range productsNum {
		// Many cheap things, few dear ones.
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
	pay, ship := oftenPay, oftenShip
	if len(t.unpaid) == 0 {
		pay = 0
	}
	if len(t.paid) == 0 {
		ship = 0
	}
	switch r := t.random.IntN(oftenOrder + pay + ship + oftenUpdate + oftenLeave); {
	case r < oftenOrder:
		return t.order()
	case r < oftenOrder+pay:
		return t.pay()
	case r < oftenOrder+pay+ship:
		return t.ship()
	case r < oftenOrder+pay+ship+oftenLeave:
		return t.leave()
	}
	return t.update()
}

func (t *teller) event(typ string, data any) *Event {
	return &Event{ID: t.uuid(), Type: typ, Timestamp: t.now, Version: 1, Metadata: map[string]string{"source": "shop"}, Data: data}
}

// uuid returns a random UUID, of version 4 in form.
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
	u := t.active[t.someone()]
	o := Order{ID: t.id("o", t.orders, 6), UserID: u.id}
	total := 0
	for range 1 + t.random.IntN(2)*t.random.IntN(4) {
		p := t.products[t.random.IntN(len(t.products))]
		quantity := 1 + t.random.IntN(2)*t.random.IntN(3)
		total += quantity * p.cents
		o.Items = append(o.Items, Item{p.id, quantity, dollars(p.cents)})
	}
	o.TotalAmount = dollars(total)
	if t.random.IntN(100) >= abandoned {
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

// leave lets somebody go who waits for nothing. If that is hard to find, it is
// an update instead; the last user stays.
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

// someone returns the place of an active user: a few order often, most seldom.
func (t *teller) someone() int {
	r := t.random.Float64()
	return int(r * r * r * float64(len(t.active)))
}

// takeEarly takes out one of the first few, so that orders move on roughly in
// the order in which they came.
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

// dollars is the float64 nearest to the amount, as its decimal text reads.
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
