{#- What a connection does while there is no server for it. Context: `templates::HaproxyCfg`. HAProxy itself would refuse it
    at once, and a switchover takes half a second. -#}
-- Written by pgherd at each start; edits are lost.
local LONGEST_MS = {{ hold_ms }}
local LOOK_MS = 20

local function hold(txn, pools)
    local waited = 0
    while waited < LONGEST_MS do
        for _, pool in ipairs(pools) do
            if txn.f:nbsrv(pool) > 0 then return end
        end
        core.msleep(LOOK_MS)
        waited = waited + LOOK_MS
    end
end

core.register_action("hold_for_primary", { "tcp-req" }, function(txn) hold(txn, { "primary" }) end, 0)
core.register_action("hold_for_reader", { "tcp-req" }, function(txn) hold(txn, { "replicas", "primary" }) end, 0)
