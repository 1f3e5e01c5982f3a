package protocol

// Protocol IDs around membership, in the newest version: see Versions.
const (
	// AdmissionProtocol is the security protocol of every connection: TLS 1.3 as libp2p has it, and then the
	// exchange of Admission, AdmissionReply and AdmissionDone. That it is not libp2p's own makes every
	// other libp2p host fail in its first round trip.
	AdmissionProtocol = "/meshnode/tls/2"
	// MembersProtocol carries one MemberNews per stream, one way.
	MembersProtocol = "/meshnode/members/2"
)

// Limits of admission and of what members tell of each other.
const (
	// MaxAdmission bounds each message that a stranger can send. A chain of three certificates with names
	// and runtimes of usual length is about 1 KiB.
	MaxAdmission = 4 << 10
	// MaxAdmissionReply bounds what a joiner takes from the member that its ticket names: two chains.
	MaxAdmissionReply = 8 << 10
	// MaxRevocationSet bounds the revocations that two members exchange when theirs differ: thousands. Nobody gets to send
	// so much before its certificate was judged good.
	MaxRevocationSet = 1 << 20
	// MaxMemberNews bounds a MemberNews: 300 members with a chain and 16 addresses each are 0.6 MiB.
	MaxMemberNews = 1 << 20
	// MaxMemberAddresses is how many addresses one member may have anywhere: a multi-homed laptop with
	// IPv6 privacy addresses has about ten.
	MaxMemberAddresses = 16
	// MaxMemberName bounds a name in a certificate, in bytes.
	MaxMemberName = 64
)
